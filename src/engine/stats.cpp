#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <perdure/stats.hpp>
#include <tuple>
#include <unordered_map>

#include "engine/leaves.hpp"
#include "engine/momenta.hpp"
#include "engine/tally.hpp"
#include "format/crc32.hpp"

namespace perdure {
namespace {

using engine::Moments;
using engine::StridedElements;
using engine::Tally;

// Adds tensors up to what their names begin with.
class Groups {
 public:
  void add(const std::string& name, const Moments& moments) {
    constexpr std::size_t kDeepest = 12;
    std::size_t end = name.find('.');
    for (std::size_t depth = 1; depth <= kDeepest && end != std::string::npos; ++depth) {
      const std::string prefix = name.substr(0, end);
      const auto [it, is_new] = numbers_.emplace(prefix, groups_.size());
      if (is_new) groups_.push_back({{prefix, depth, 0, {}}, {}});
      Group& group = groups_[it->second];
      ++group.stats.tensors;
      group.moments.add(moments);
      end = name.find('.', end + 1);
    }
  }

  std::vector<GroupStats> result() && {
    std::vector<GroupStats> out;
    for (Group& group : groups_) {
      if (group.stats.tensors < 2) continue;
      group.stats.figures = engine::figures_of(group.moments);
      out.push_back(std::move(group.stats));
    }
    return out;
  }

 private:
  struct Group {
    GroupStats stats;
    Moments moments;
  };
  std::vector<Group> groups_;
  std::unordered_map<std::string, std::size_t> numbers_;
};

class Statistics {
 public:
  Statistics(const CheckpointFile& file, const StatsOptions& options)
      : file_(file), options_(options) {
    report_.path = file.name();
    for (engine::Leaf& leaf : engine::leaves_of(file.value()))
      if (leaf.value->kind() == Kind::tensor && engine::selects(options.pattern, leaf.name))
        add(leaf);
    if (report_.tensors.empty() && !options.pattern.empty())
      throw Error(ErrorCode::not_found,
                  fmt::format("{}: no tensor's name matches '{}'", file.name(), options.pattern));
    for (const auto& [storage, tallies] : streamed_)
      report_.bytes += file.storages()[storage]->size;
  }

  std::uint64_t bytes() const { return report_.bytes; }

  StatsReport run() {
    read();
    Groups groups;
    for (std::size_t i = 0; i < report_.tensors.size(); ++i) finish(i, groups);
    report_.groups = std::move(groups).result();
    add_momentum();
    return std::move(report_);
  }

 private:
  // Equal for the same elements of the same storage, read the same way.
  using Key = std::tuple<const TensorStorage*, DType, bool, bool, StridedElements>;

  struct Work {
    const Tensor* tensor = nullptr;
    std::size_t first = 0;                   // the tensor that has the same elements
    std::unique_ptr<Tally> tally = nullptr;  // of the first
  };

  void add(engine::Leaf& leaf) {
    const Tensor& tensor = leaf.value->as_tensor();
    const std::size_t number = report_.tensors.size();
    TensorStats stats;
    stats.name = std::move(leaf.name);
    stats.path = std::move(leaf.path);
    stats.dtype = tensor.dtype;
    stats.shape = tensor.shape;
    const auto [it, is_new] = first_.emplace(
        Key{tensor.storage.get(), tensor.dtype, tensor.conj, tensor.neg, StridedElements(tensor)},
        number);
    work_.push_back({&tensor, it->second});
    if (!is_new)
      stats.same_as = report_.tensors[it->second].name;
    else if (tensor.numel() > 0 && !has_data(*tensor.storage))
      stats.problem = "the file has no data for it";
    else
      start(work_.back());
    report_.tensors.push_back(std::move(stats));
  }

  void start(Work& work) {
    work.tally = std::make_unique<Tally>(*work.tensor);
    const TensorStorage& storage = *work.tensor->storage;
    if (storage.data == nullptr && work.tensor->numel() > 0)
      streamed_[static_cast<std::size_t>(storage.record)].push_back(work.tally.get());
  }

  bool has_data(const TensorStorage& storage) const {
    if (storage.data != nullptr) return !storage.copier;
    return storage.record >= 0 && storage.device != "meta" &&
           static_cast<std::size_t>(storage.record) < file_.storages().size();
  }

  void read() {
    std::vector<std::size_t> storages;
    for (const auto& [storage, tallies] : streamed_) storages.push_back(storage);
    file_.stream(storages, [this](std::size_t storage, std::uint64_t at, ConstBytes bytes) {
      for (Tally* tally : streamed_.at(storage)) tally->take(at, bytes);
      if (options_.progress) options_.progress(bytes.size());
    });
    for (const Work& work : work_)  // what was read when the file was opened
      if (const TensorStorage& storage = *work.tensor->storage;
          work.tally && storage.data != nullptr)
        for (std::uint64_t at = 0; at < storage.size; at += format::kBlockSize)
          work.tally->take(at,
                           {storage.data + at, std::min(format::kBlockSize, storage.size - at)});
  }

  void finish(std::size_t number, Groups& groups) {
    TensorStats& stats = report_.tensors[number];
    const Work& work = work_[number];
    if (work.first != number) {
      stats.figures = report_.tensors[work.first].figures;
      stats.problem = report_.tensors[work.first].problem;
    } else if (work.tally) {
      Moments moments = work.tally->total();
      if (work.tensor->conj) moments.conjugate();
      if (work.tensor->neg) moments.negate(stats.dtype);
      stats.figures = figures_of(moments, stats.dtype);
      groups.add(stats.name, moments);
    }
  }

  void add_momentum() {
    const std::vector<engine::ParameterState> states = engine::parameter_states(file_);
    if (states.empty()) return;
    std::unordered_map<std::string, std::size_t> numbers;
    std::vector<std::string> names;
    for (const TensorStats& stats : report_.tensors) {
      numbers.emplace(stats.name, names.size());
      names.push_back(stats.name);
    }
    const engine::ParameterTensors weights(states, names);
    for (const engine::ParameterState& state : states) {
      const std::optional<std::size_t> weight = weights.find(state.parameter);
      MomentumStats out{weight ? names[*weight] : state.parameter,
                        state.optimizer,
                        weight.value_or(MomentumStats::kNone),
                        {}};
      for (const std::string& name : state.states) {
        const auto it = numbers.find(name);
        if (it == numbers.end()) continue;
        out.momentum.push_back(it->second);
        report_.tensors[it->second].parameter = out.parameter;
      }
      if (!out.momentum.empty()) report_.momentum.push_back(std::move(out));
    }
  }

  const CheckpointFile& file_;
  const StatsOptions& options_;
  StatsReport report_;
  std::vector<Work> work_;  // of report_.tensors
  std::map<Key, std::size_t> first_;
  std::map<std::size_t, std::vector<Tally*>> streamed_;  // by storage
};

}  // namespace

StatsReport stats(const CheckpointFile& file, const StatsOptions& options) {
  return Statistics(file, options).run();
}
StatsReport stats(const std::filesystem::path& path, const StatsOptions& options) {
  return stats(CheckpointFile::open(path, true), options);
}
std::uint64_t stats_size(const CheckpointFile& file, const StatsOptions& options) {
  return Statistics(file, options).bytes();
}

}  // namespace perdure
