#include "engine/shard_cut.hpp"

#include <fmt/format.h>

#include <map>
#include <tuple>
#include <unordered_map>

#include "engine/flat_state.hpp"

namespace perdure::engine {
namespace {

class Cutter {
 public:
  Cutter(const std::vector<Shard>& shards, const CheckpointFile& file, Problems& problems)
      : file_(file), problems_(problems) {
    for (const Shard& shard : shards) shards_.emplace(flat_name(shard.path), &shard);
  }

  Value cut(const Value& value) {
    if (value.kind() == Kind::tensor) return cut_tensor(value);
    if (value.kind() == Kind::list) {
      Value::Items items;
      for (const Value& item : value.as_items()) items.push_back(cut_at(Value(items.size()), item));
      return Value::list(std::move(items));
    }
    if (!value.is_mapping() || value.kind() == Kind::composite) return value;
    Dict out(value.as_dict().kind());
    out.set_attributes(value.as_dict().attributes());
    for (const auto& [key, item] : value.as_dict()) out.set(key, cut_at(key, item));
    return Value(std::move(out));
  }

 private:
  Value cut_at(const Value& key, const Value& item) {
    path_.push_back(key);
    Value out = cut(item);
    path_.pop_back();
    return out;
  }

  Value cut_tensor(const Value& value) {
    const Tensor& tensor = value.as_tensor();
    const Shard* shard = find(tensor);
    if (shard == nullptr) return value;
    if (tensor.shape != shard->shape) {
      problems_.push_back(fmt::format("{}: shape {} in the file, {} here", flat_name(path_),
                                      repr(Value::size(tensor.shape)),
                                      repr(Value::size(shard->shape))));
      return value;
    }
    // One tensor in two places stays one.
    const auto [known, fresh] =
        cut_.try_emplace({value.identity(), shard->offsets, shard->sizes}, Value());
    if (fresh) known->second = Value(file_.part(tensor, shard->offsets, shard->sizes));
    return known->second;
  }

  // Its own, or that of the parameter that it is of.
  const Shard* find(const Tensor& tensor) const {
    if (const auto own = shards_.find(flat_name(path_)); own != shards_.end()) return own->second;
    if (path_.empty()) return nullptr;
    const auto parent = shards_.find(flat_name({path_.begin(), path_.end() - 1}));
    if (parent == shards_.end() || parent->second->shape != tensor.shape) return nullptr;
    return parent->second;
  }

  const CheckpointFile& file_;
  Problems& problems_;
  std::unordered_map<std::string, const Shard*> shards_;
  std::map<std::tuple<const void*, std::vector<std::int64_t>, std::vector<std::int64_t>>, Value>
      cut_;
  KeyPath path_;
};

}  // namespace

Value cut_shards(const Value& value, const std::vector<Shard>& shards, const CheckpointFile& file,
                 Problems& problems) {
  return Cutter(shards, file, problems).cut(value);
}

}  // namespace perdure::engine
