// From one box of a tensor into another one: what of a piece belongs into the part that is wanted.
#pragma once

#include <cstdint>
#include <optional>
#include <perdure/value.hpp>
#include <vector>

namespace perdure::engine {

// A box of a tensor, whose elements lie C-contiguous.
struct TensorBox {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> sizes;
};

class BoxCopy {
 public:
  BoxCopy(const TensorBox& from, const TensorBox& to, std::size_t itemsize);

  bool empty() const { return rows_ == 0; }
  // Where `from` begins in `to`, where all of it lies there in one run.
  std::optional<std::uint64_t> one_run() const;
  // `bytes` are those at `at` in `from`; what of them is in `to` goes there. From any thread.
  void take(std::uint64_t at, ConstBytes bytes, std::byte* into) const;

 private:
  struct Loop {
    std::uint64_t count = 1, from = 0, to = 0;  // bytes from one to the next
  };
  std::uint64_t place(std::uint64_t row, std::uint64_t Loop::* side) const;

  std::vector<Loop> loops_;          // the outermost first
  std::uint64_t rows_ = 0;           // runs that are contiguous on both sides
  std::uint64_t run_ = 0;            // bytes of each
  std::uint64_t from_ = 0, to_ = 0;  // where the first one is
  std::uint64_t from_size_ = 0;
};

}  // namespace perdure::engine
