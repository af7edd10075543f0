// Elements of a strided tensor in their own order, from a stream of its storage.
#pragma once

#include <cstdint>
#include <perdure/value.hpp>
#include <vector>

namespace perdure::engine {

// The elements number `first` to `last` of a tensor, row by row, are put side by side.
class Gather {
 public:
  Gather(const Tensor& tensor, std::uint64_t first, std::uint64_t last, std::byte* into);
  // A run of the storage, as CheckpointFile::stream() gives them; from any thread.
  void take(std::uint64_t at, ConstBytes bytes) const;

 private:
  struct Loop {
    std::uint64_t count = 0, stride = 0;
    std::uint64_t step = 0;  // from one element to the next in the tensor's own order
  };
  struct Run;
  void visit(std::size_t depth, std::uint64_t place, std::uint64_t number, const Run& run) const;
  void copy(const Loop& loop, std::uint64_t place, std::uint64_t number, std::uint64_t from,
            std::uint64_t to, const Run& run) const;

  std::size_t size_;
  std::uint64_t offset_ = 0, first_, last_;
  std::byte* into_;
  std::vector<Loop> loops_;             // the largest stride first
  std::vector<std::uint64_t> extents_;  // of the loops from there on: to the last place
};

}  // namespace perdure::engine
