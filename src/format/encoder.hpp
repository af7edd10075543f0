// A state as the bytes of a PyTorch file: everything but tensor data and checksums is settled by
// the constructor.
//
//   [header | bytes of a tensor record | descriptor] ...   as FilePlan has it
//   [the tail: data.pkl, the small records, .perdure/index, the zip directory]
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <perdure/file.hpp>
#include <span>
#include <string>
#include <vector>

#include "format/file_plan.hpp"
#include "format/layout.hpp"

namespace perdure::format {

// Records beside PyTorch's own.
enum class Extras { perdure, none };

class Encoder final : public FilePlan {
 public:
  // Plans the file: flattens `state`, lays out the records, pickles. The storages must stay alive
  // and unchanged until their bytes are taken; the state itself is not needed any more. What the
  // calling thread has set going on devices before comes before their bytes are copied.
  // Error(invalid) names the place of a value that torch.load could not take. With a cache, what
  // follows from the structure of the state is made once and used again while it stays the same.
  Encoder(const Value& state, const CheckpointInfo& info, LayoutCache* cache = nullptr,
          Extras extras = Extras::perdure);
  Encoder(Encoder&&) noexcept;
  ~Encoder() override;

  std::uint64_t file_size() const override;
  std::span<const TensorRecord> tensors() const override;
  std::uint64_t tail_offset() const override;
  std::string header(std::size_t tensor) const override;
  std::string descriptor(std::size_t tensor, std::uint32_t crc32) const override;
  std::string tail(const std::vector<StorageChecksums>& sums) const override;
  std::string tensor_name(std::size_t tensor, const Value& state) const override;

  // Emits the file front to back in pieces of a few MiB, checksumming on the way. May be called
  // more than once.
  void write(const std::function<void(ConstBytes)>& sink) const;

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

}  // namespace perdure::format
