// A file that is to be written, but for the bytes and checksums of its tensors:
//
//   [header | bytes of a tensor | descriptor] ...   in the order of tensors(), from offset 0
//   [the tail]
#pragma once

#include <cstdint>
#include <perdure/value.hpp>
#include <span>
#include <string>
#include <vector>

#include "format/layout.hpp"

namespace perdure::format {

class FilePlan {
 public:
  virtual ~FilePlan() = default;
  virtual std::uint64_t file_size() const = 0;  // bytes, exactly
  virtual std::span<const TensorRecord> tensors() const = 0;
  virtual std::uint64_t tail_offset() const = 0;  // where what belongs to the last tensor ends
  virtual std::string header(std::size_t tensor) const = 0;  // from header_offset to data_offset
  // From the end of the tensor's bytes to its TensorRecord::end.
  virtual std::string descriptor(std::size_t tensor, std::uint32_t crc32) const = 0;
  // All from tail_offset to the end. `sums`: of every tensor.
  virtual std::string tail(const std::vector<StorageChecksums>& sums) const = 0;
  // For messages: where in `state`, of which the plan was made, a tensor stands.
  virtual std::string tensor_name(std::size_t tensor, const Value& state) const = 0;

  // What the calling thread has set going on devices comes before what is copied from now on.
  void catch_up() const;
};

}  // namespace perdure::format
