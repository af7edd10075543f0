// A hash table by address (or another number that is never 0) in one run of memory: walks over
// thousands of objects spend their time in little else. Nothing is ever taken out.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace perdure::python {

template <class V>
class AddressMap {
 public:
  // The value at `key`, made where it is not there, and whether it was made. Valid until the next
  // call.
  std::pair<V*, bool> insert(std::uintptr_t key) {
    if ((count_ + 1) * 2 > slots_.size()) grow();
    Slot& slot = slots_[slot_of(key)];
    const bool fresh = slot.key == 0;
    slot.key = key;
    count_ += fresh;
    return {&slot.value, fresh};
  }
  std::pair<V*, bool> insert(const void* key) {
    return insert(reinterpret_cast<std::uintptr_t>(key));
  }
  // Null where it is not there.
  const V* find(std::uintptr_t key) const {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[slot_of(key)];
    return slot.key == 0 ? nullptr : &slot.value;
  }
  const V* find(const void* key) const { return find(reinterpret_cast<std::uintptr_t>(key)); }
  bool contains(const void* key) const { return find(key) != nullptr; }

 private:
  struct Slot {
    std::uintptr_t key = 0;
    V value{};
  };

  std::size_t slot_of(std::uintptr_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = (key * 0x9E3779B97F4A7C15u) >> 32 & mask;
    while (slots_[at].key != 0 && slots_[at].key != key) at = (at + 1) & mask;
    return at;
  }
  void grow() {
    std::vector<Slot> old(slots_.empty() ? 64 : slots_.size() * 4);
    old.swap(slots_);
    for (Slot& slot : old)
      if (slot.key != 0) slots_[slot_of(slot.key)] = std::move(slot);
  }

  std::vector<Slot> slots_;  // a power of two, at least half of them free
  std::size_t count_ = 0;
};

struct Nothing {};
using AddressSet = AddressMap<Nothing>;

}  // namespace perdure::python
