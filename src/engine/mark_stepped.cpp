#include "engine/mark_stepped.hpp"

#include <unordered_set>

namespace perdure::engine {
namespace {

class Marking {
 public:
  explicit Marking(const std::unordered_set<const void*>& stepped) : stepped_(stepped) {}

  void mark(Value& value, bool all) {
    if (value.kind() == Kind::tensor) return mark(value.as_tensor(), all);
    if (!value.is_mapping() && !value.is_sequence()) return;
    if (!seen_.insert(value.identity()).second) return;
    if (value.is_mapping()) {
      Dict& dict = value.as_dict();
      for (const auto& [key, item] : dict) mark(*dict.find(key), all);
    } else {
      for (Value& item : value.as_items()) mark(item, all);
    }
  }

 private:
  void mark(Tensor& tensor, bool all) const {
    if (tensor.liveness == Liveness::live && (all || stepped_.contains(tensor.storage->data)))
      tensor.liveness = Liveness::stepped;
  }

  const std::unordered_set<const void*>& stepped_;
  std::unordered_set<const void*> seen_;
};

}  // namespace

void mark_stepped(Dict& tree, const std::vector<TrainingState::Entry>& entries) {
  std::unordered_set<const void*> stepped;
  for (const auto& entry : entries)
    if (entry.stepped)
      for (const void* storage : entry.stepped()) stepped.insert(storage);
  if (stepped.empty()) return;
  Marking marking(stepped);
  for (const auto& entry : entries)
    if (Value* value = tree.find(entry.name)) marking.mark(*value, entry.stepped != nullptr);
}

}  // namespace perdure::engine
