// Compares tensors of two files element by element: both files streamed, in bounded memory.
#pragma once

#include <functional>
#include <map>
#include <perdure/diff.hpp>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/distances.hpp"

namespace perdure::engine {

class TensorPairs {
 public:
  TensorPairs(const CheckpointFile& a, const CheckpointFile& b, const DiffOptions& options)
      : a_(a), b_(b), options_(options) {}

  // Of the same shape, of comparable dtypes, and with data in the files. The number of the pair;
  // the same for the same elements. Error(unsupported) for what overlaps so much that it would not
  // end.
  std::size_t add(const Tensor& a, const Tensor& b);
  std::uint64_t bytes() const noexcept { return bytes_; }  // that will be read, about
  void run();
  Distance result(std::size_t pair) const;

 private:
  using Strides = std::vector<std::int64_t>;
  using Key = std::tuple<const TensorStorage*, DType, bool, bool, std::int64_t, Strides,
                         const TensorStorage*, DType, bool, bool, std::int64_t, Strides, Strides>;
  struct Pair {
    // The sizes of 1 left out, and those that both repeat; in the order of the first one's storage.
    Tensor a, b;
    std::uint64_t repeats = 1;
    Distances distances;
  };
  // Elements of a pair that are gathered in memory.
  struct Part {
    std::size_t pair = 0;
    std::uint64_t first = 0, last = 0;
    std::size_t at_a = 0, at_b = 0;  // in the memory of either side
  };

  static Pair reduced(const Tensor& a, const Tensor& b, const DiffOptions& options);
  bool streams(const Pair& pair) const;
  void stream();
  void gather();
  void gather(const std::vector<Part>& parts, std::size_t size_a, std::size_t size_b);
  void fill(const CheckpointFile& file, const std::vector<Part>& parts, bool first_side,
            std::byte* memory) const;
  void took(std::uint64_t bytes) const {
    if (options_.progress) options_.progress(bytes);
  }

  const CheckpointFile& a_;
  const CheckpointFile& b_;
  const DiffOptions& options_;
  std::vector<Pair> pairs_;
  std::map<Key, std::size_t> known_;
  std::vector<std::size_t> streamed_, gathered_;  // numbers of pairs
  std::map<std::pair<const TensorStorage*, const TensorStorage*>, std::size_t> by_storage_;
  std::uint64_t bytes_ = 0;
};

}  // namespace perdure::engine
