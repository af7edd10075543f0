// The figures of a tensor, from a stream of its storage.
#pragma once

#include <perdure/value.hpp>
#include <vector>

#include "engine/moments.hpp"
#include "engine/strided_elements.hpp"

namespace perdure::engine {

// There is a part for each run of the stream, so that the sum does not depend on which thread was
// quicker.
class Tally {
 public:
  explicit Tally(const Tensor& tensor);
  // A run of the storage, as CheckpointFile::stream() gives them; each once, from any thread.
  void take(std::uint64_t at, ConstBytes bytes);
  Moments total() const;

 private:
  DType dtype_;
  std::size_t size_;
  StridedElements elements_;
  std::uint64_t first_part_ = 0;
  std::vector<Moments> parts_;
};

}  // namespace perdure::engine
