// A training program of several ranks: a matrix whose rows are shared out over them, with the
// momentum of an optimizer; a bias that all of them have, and a buffer; a place in the data and a
// random number generator of each rank's own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <perdure/state.hpp>
#include <string>
#include <vector>

namespace perdure::test {

class RankProgram {
 public:
  static constexpr std::int64_t kRows = 7, kColumns = 5;

  RankProgram(std::size_t rank, std::size_t ranks) : rank_(rank) {
    const auto row = [&](std::size_t i) { return static_cast<std::int64_t>(kRows * i / ranks); };
    first_ = row(rank);
    rows_ = row(rank + 1) - first_;
    weight_.resize(static_cast<std::size_t>(rows_ * kColumns), -1);
    momentum_ = weight_;
    add_model();
    add_optimizer();
    state.add("position", position);
    state.add_rng({"toy", [this] { return Value(seed); },
                   [this](const Value& value) { seed = value.as_int(); }});
  }
  RankProgram(const RankProgram&) = delete;
  RankProgram& operator=(const RankProgram&) = delete;

  // Trains to this step.
  void go_to(std::int64_t step) {
    state.step = step;
    for (std::size_t i = 0; i < weight_.size(); ++i) {
      weight_[i] = number(step, i);
      momentum_[i] = -weight_[i];
    }
    for (std::size_t i = 0; i < bias_.size(); ++i) bias_[i] = static_cast<float>(step) + 0.5F;
    mean_[0] = static_cast<float>(step);
    position = 100 * step + static_cast<std::int64_t>(rank_);
    seed = 1000 * step + static_cast<std::int64_t>(rank_);
  }

  // "" where all is that of this step, as `saved` ranks have saved it; else what is not.
  std::string differs_from(std::int64_t step, std::size_t saved) const {
    if (state.step != step) return "step " + std::to_string(state.step);
    for (std::size_t i = 0; i < weight_.size(); ++i)
      if (weight_[i] != number(step, i) || momentum_[i] != -weight_[i])
        return "row " + std::to_string(first_ + static_cast<std::int64_t>(i) / kColumns);
    for (const float x : bias_)
      if (x != static_cast<float>(step) + 0.5F) return "bias";
    if (mean_[0] != static_cast<float>(step)) return "mean";
    const bool was_there = rank_ < saved;
    const auto saver = static_cast<std::int64_t>(was_there ? rank_ : 0);
    if (position != 100 * step + saver) return "position " + std::to_string(position);
    if (seed != (was_there ? 1000 * step + saver : 0)) return "seed " + std::to_string(seed);
    return "";
  }

  TrainingState state;
  std::int64_t position = 0;
  std::int64_t seed = 0;
  Value more;  // of the model's state_dict
  std::vector<std::uint64_t> versions = {0};
  float* weight() { return weight_.data(); }

 private:
  float number(std::int64_t step, std::size_t i) const {
    return static_cast<float>(step * 1000 + first_ * kColumns + static_cast<std::int64_t>(i));
  }
  static Tensor over(std::vector<float>& data, std::vector<std::int64_t> shape, Liveness liveness) {
    Tensor tensor = Tensor::over(data.data(), DType::float32, std::move(shape));
    tensor.liveness = liveness;
    return tensor;
  }
  Shard shard(KeyPath path) const {
    return {std::move(path), {kRows, kColumns}, {first_, 0}, {rows_, kColumns}};
  }
  static void take(std::vector<float>& into, const Value& value) {
    const Tensor& tensor = value.as_tensor();
    const auto [begin, end] = tensor.byte_range();
    if (end - begin != into.size() * sizeof(float)) throw std::runtime_error("another size");
    const auto* from = reinterpret_cast<const float*>(tensor.storage->data + begin);
    if (from != into.data()) std::copy_n(from, into.size(), into.begin());
  }

  void add_model() {
    TrainingState::Entry entry;
    entry.name = "model";
    entry.role = Role::module;
    entry.live = entry.state_dict = [this] {
      Dict dict{{"weight", over(weight_, {rows_, kColumns}, Liveness::stepped)},
                {"bias", over(bias_, {3}, Liveness::stepped)},
                {"mean", over(mean_, {1}, Liveness::live)}};
      if (more.kind() != Kind::none) dict.set("more", more);
      return Value(std::move(dict));
    };
    entry.load_state_dict = [this](const Value& value) {
      take(weight_, value["weight"]);
      take(bias_, value["bias"]);
      take(mean_, value["mean"]);
    };
    entry.structure = [] {
      const auto like = [](std::vector<std::int64_t> shape) {
        return Tensor::over(nullptr, DType::float32, std::move(shape));
      };
      return Dict{{"weight", like({kRows, kColumns})}, {"bias", like({3})}, {"mean", like({1})}};
    };
    entry.versions = [this] { return versions; };
    entry.version_name = [](std::size_t) { return "weight"; };
    entry.shards = [this] { return std::vector<Shard>{shard({"weight"})}; };
    state.add_entry(std::move(entry));
  }
  void add_optimizer() {
    TrainingState::Entry entry;
    entry.name = "optimizer";
    entry.role = Role::optimizer;
    entry.live = entry.state_dict = [this] {
      return Value(Dict{
          {"state",
           Dict{{0, Dict{{"momentum", over(momentum_, {rows_, kColumns}, Liveness::stepped)}}}}},
          {"lr", 0.1}});
    };
    entry.load_state_dict = [this](const Value& value) {
      take(momentum_, value["state"][0]["momentum"]);
    };
    entry.shards = [this] { return std::vector<Shard>{shard({"state", 0, "momentum"})}; };
    state.add_entry(std::move(entry));
  }

  std::size_t rank_;
  std::int64_t first_ = 0, rows_ = 0;
  std::vector<float> weight_, momentum_, bias_ = {-1, -1, -1}, mean_ = {-1};
};

}  // namespace perdure::test
