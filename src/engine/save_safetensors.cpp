#include "engine/save_safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "engine/changed_tensors.hpp"
#include "engine/flat_state.hpp"
#include "format/coding.hpp"
#include "format/utf8.hpp"
#include "storage/new_directory.hpp"

namespace perdure::engine {
namespace {

constexpr std::uint64_t kArena = std::uint64_t{32} << 20;

// Why safetensors cannot hold it; "" where they can.
std::string problem_of(const FlatEntry& entry) {
  if (!format::is_strict_utf8(entry.name)) return "has a name that is no UTF-8";
  if (entry.value.kind() != Kind::tensor)
    return fmt::format("is a {}, and safetensors hold nothing but tensors",
                       kind_name(entry.value.kind()));
  const Tensor& tensor = entry.value.as_tensor();
  if (entry.name == "__metadata__") return "has the name that safetensors keep for themselves";
  if (tensor.storage->device == "meta") return "is on the meta device, so it has no values";
  if (tensor.conj || tensor.neg)
    return "is conjugated or negated lazily, which safetensors cannot hold (resolve it first)";
  if (format::safetensors_dtype(tensor.dtype).empty())
    return fmt::format("is of {}, which safetensors have not", dtype_name(tensor.dtype));
  if (tensor.dtype == DType::float4_e2m1fn_x2 && tensor.shape.empty())
    return "is a pair of 4-bit numbers without a dimension, which safetensors have not";
  return {};
}

// The memory that tensors have taken so far: no two of them may look into the same.
class TakenMemory {
 public:
  // The name of the tensor that has some of it; "" where it was free, and is this one's now.
  std::string take(const FlatEntry& entry) {
    const Tensor& tensor = entry.value.as_tensor();
    const auto [begin, end] = tensor.byte_range();
    if (begin == end) return {};
    auto& runs = runs_[tensor.storage->data];
    auto next = runs.upper_bound(begin);
    if (next != runs.end() && next->first < end) return next->second.second;
    if (next != runs.begin())
      if (const auto& before = *std::prev(next); before.second.first > begin)
        return before.second.second;
    runs.emplace(begin, std::pair(end, entry.name));
    return {};
  }

 private:
  std::map<const std::byte*, std::map<std::uint64_t, std::pair<std::uint64_t, std::string>>> runs_;
};

void put(Value& tree, const KeyPath& path, const Value& value) {
  Value* at = &tree;
  for (std::size_t i = 0; i + 1 < path.size(); ++i) {
    Value* below = at->as_dict().find(path[i]);
    if (below == nullptr) {
      at->as_dict().set(path[i], Dict());
      below = at->as_dict().find(path[i]);
    }
    at = below;
  }
  at->as_dict().set(path.back(), value);
}

class FileWriter {
 public:
  FileWriter(std::vector<NamedTensor> tensors, const format::TextMap& metadata) {
    for (NamedTensor& tensor : tensors) {
      entries_.push_back(
          {tensor.name, tensor.tensor.dtype, tensor.tensor.shape, 0, bytes_of(tensor.tensor)});
      size_ += entries_.back().size;
      tensors_.emplace(std::move(tensor.name), std::move(tensor.tensor));
    }
    head_ = format::lay_out_safetensors(entries_, metadata);
    size_ += head_.size();
    if (head_.size() > format::kMaxSafetensorsHeader)
      throw Error(ErrorCode::unsupported,
                  "more names and shapes than the header of a safetensors file may hold; write "
                  "several files (max_shard_size)");
  }
  void write(storage::Storage& storage, const std::string& name, storage::IfExists if_exists,
             Arena& arena, const OnBytes& on_bytes,
             const std::function<void()>& before_commit) const {
    const auto out = storage.create(name, size_, if_exists);
    BlockWriter writer(*out, arena, on_bytes);
    writer.append(head_);
    for (const format::SafetensorsEntry& entry : entries_) writer.append(tensors_.at(entry.name));
    writer.finish();
    before_commit();
    out->commit();
  }
  std::uint64_t size() const { return size_; }

 private:
  std::vector<format::SafetensorsEntry> entries_;
  std::map<std::string, Tensor> tensors_;
  std::string head_;
  std::uint64_t size_ = 0;
};

std::vector<std::vector<NamedTensor>> shards_of(std::vector<NamedTensor> tensors,
                                                std::uint64_t max_bytes) {
  std::vector<std::vector<NamedTensor>> shards(1);
  std::uint64_t size = 0;
  for (NamedTensor& tensor : tensors) {
    const std::uint64_t bytes = bytes_of(tensor.tensor);
    if (!shards.back().empty() && (bytes > max_bytes || size > max_bytes - bytes)) {
      shards.emplace_back();
      size = 0;
    }
    size += bytes;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

}  // namespace

SafetensorsParts split_for_safetensors(const Value& state, bool keep_rest) {
  SafetensorsParts parts{.tensors = {}, .rest = Value(Dict())};
  TakenMemory taken;
  for (FlatEntry& entry : flatten(state)) {
    std::string problem = problem_of(entry);
    if (problem.empty())
      if (const std::string other = taken.take(entry); !other.empty())
        problem = fmt::format("shares memory with {}, and safetensors hold every byte once",
                              repr(Value(other)));
    if (problem.empty()) {
      parts.tensors.push_back({std::move(entry.name), in_c_order(entry.value.as_tensor())});
    } else if (keep_rest) {
      put(parts.rest, entry.path, entry.value);
    } else {
      throw Error(ErrorCode::invalid,
                  fmt::format("{} {}; leave it out (only), or keep it in a file of its own (rest)",
                              format_path(entry.path), problem));
    }
  }
  return parts;
}

void save_safetensors(io::System& system, const std::filesystem::path& path,
                      std::vector<NamedTensor> tensors, const format::TextMap& metadata,
                      storage::IfExists if_exists, const OnBytes& on_bytes,
                      const std::function<void()>& before_commit) {
  const storage::FileTarget target = storage::resolve_target(system, path);
  const FileWriter writer(std::move(tensors), metadata);
  target.folder->collect_debris_of(target.name);
  Arena arena(kArena, {});
  arena.reserve(writer.size());
  writer.write(*target.folder, target.name, if_exists, arena, on_bytes, before_commit);
}

void save_sharded_safetensors(io::System& system, const std::filesystem::path& path,
                              std::vector<NamedTensor> tensors, const format::TextMap& metadata,
                              std::uint64_t max_bytes, storage::IfExists if_exists,
                              const OnBytes& on_bytes, const std::function<void()>& before_commit) {
  auto shards = shards_of(std::move(tensors), max_bytes);
  storage::NewDirectory directory(system, path, if_exists);
  Arena arena(kArena, {});
  arena.reserve(kArena);
  format::SafetensorsIndex index{.files = {}, .places = {}, .metadata = metadata};
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    index.files.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    for (const NamedTensor& tensor : shards[i]) {
      index.places[tensor.name] = i;
      total += bytes_of(tensor.tensor);
    }
    const FileWriter writer(std::move(shards[i]), metadata);
    writer.write(directory.files(), index.files[i], storage::IfExists::fail, arena, on_bytes,
                 [] {});
  }
  const std::string text = format::write_safetensors_index(index, total);
  const auto out = directory.files().create("model.safetensors.index.json", text.size(),
                                            storage::IfExists::fail);
  out->append(format::as_bytes(text));
  out->commit();
  before_commit();
  directory.commit();
}

}  // namespace perdure::engine
