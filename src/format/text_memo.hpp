// Which texts stand in a pickle already, and under which number of its memo. A table over the
// pickle's own bytes: nothing is allocated for a text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::format {

class TextMemo {
 public:
  // `pickle` may grow, but what is in it stays.
  explicit TextMemo(const std::string& pickle) : pickle_(pickle), slots_(256) {}

  // The number of `text`; null where it is new. add() must come next, after it was written.
  const std::uint32_t* find(std::string_view text) {
    hash_ = std::hash<std::string_view>{}(text);
    for (next_ = hash_ & mask(); slots_[next_].used; next_ = (next_ + 1) & mask())
      if (slots_[next_].hash == hash_ && text_of(slots_[next_]) == text)
        return &slots_[next_].number;
    return nullptr;
  }
  // The last `size` bytes of the pickle are the text that find() did not find.
  void add(std::size_t size, std::uint32_t number) {
    slots_[next_] = {.hash = hash_,
                     .offset = pickle_.size() - size,
                     .size = static_cast<std::uint32_t>(size),
                     .number = number,
                     .used = true};
    if (++count_ * 2 > slots_.size()) grow();
  }

 private:
  struct Slot {
    std::size_t hash = 0;
    std::size_t offset = 0;
    std::uint32_t size = 0;
    std::uint32_t number = 0;
    bool used = false;
  };

  std::size_t mask() const { return slots_.size() - 1; }
  std::string_view text_of(const Slot& slot) const {
    return std::string_view(pickle_).substr(slot.offset, slot.size);
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 4);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (!slot.used) continue;
      std::size_t at = slot.hash & mask();
      while (slots_[at].used) at = (at + 1) & mask();
      slots_[at] = slot;
    }
  }

  const std::string& pickle_;
  std::vector<Slot> slots_;  // a power of two, at least half of them free
  std::size_t count_ = 0;
  std::size_t hash_ = 0;  // of the last find
  std::size_t next_ = 0;  // the free slot that it ended at
};

}  // namespace perdure::format
