// Bytes of any number and from anywhere, written in the blocks that a disk likes best.
#pragma once

#include <cstdint>
#include <functional>
#include <perdure/file.hpp>
#include <string_view>

#include "engine/arena.hpp"
#include "storage/storage.hpp"

namespace perdure::engine {

// Told of every block's bytes; may throw.
using OnBytes = std::function<void(std::uint64_t)>;

class BlockWriter {
 public:
  // All must outlive it. The arena's blocks are its own meanwhile.
  BlockWriter(storage::Replacement& out, Arena& arena, const OnBytes& on_bytes);

  void append(ConstBytes bytes);
  void append(std::string_view text);
  // What a C-contiguous tensor holds, from memory or through its storage's copier. `sum` gets the
  // CRC-32 of it, where it is not null.
  void append(const Tensor& tensor, std::uint32_t* sum = nullptr);
  void pad_to(std::uint64_t multiple);  // with zeros
  std::uint64_t written() const { return written_; }
  // The last block goes out; nothing comes after it.
  void finish();

 private:
  MutableBytes room(std::uint64_t wanted);  // some of the open block
  void filled(std::uint64_t count);
  void send();

  storage::Replacement& out_;
  Arena& arena_;
  const OnBytes& on_bytes_;
  std::uint64_t block_ = 0;
  std::uint64_t in_block_ = 0;
  std::uint64_t written_ = 0;
};

// Bytes that a C-contiguous tensor takes.
std::uint64_t bytes_of(const Tensor& tensor);

}  // namespace perdure::engine
