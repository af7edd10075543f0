// A state as the bytes of a PyTorch file: everything but tensor data and checksums is settled by
// the constructor.
#pragma once

#include <functional>
#include <memory>
#include <perdure/file.hpp>

namespace perdure::format {

class Encoder {
 public:
  // Plans the file: flattens `state`, lays out the records, pickles. The storages must stay alive
  // and unchanged until write() is done. Error(invalid) names the place of a value that torch.load
  // could not take.
  Encoder(const Value& state, const CheckpointInfo& info);
  Encoder(Encoder&&) noexcept;
  ~Encoder();

  std::uint64_t file_size() const;  // bytes that write() will emit, exactly
  // Emits the file front to back in pieces of a few MiB, checksumming on the way. May be called
  // more than once.
  void write(const std::function<void(ConstBytes)>& sink) const;

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

}  // namespace perdure::format
