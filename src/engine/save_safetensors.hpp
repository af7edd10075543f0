// Writing safetensors: one file, or several with an index.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "engine/block_writer.hpp"
#include "format/safetensors.hpp"
#include "io/system.hpp"

namespace perdure::engine {

struct NamedTensor {
  std::string name;
  Tensor tensor;  // C-contiguous, of a dtype that the format has
};

// What of a state safetensors hold, and what they do not.
struct SafetensorsParts {
  std::vector<NamedTensor> tensors;
  Value rest;  // a dict, nested as in the state (lists that hold tensors as dicts); empty: all is
               // held
};
// Error(invalid), with the place, for what they cannot hold, unless `keep_rest`.
SafetensorsParts split_for_safetensors(const Value& state, bool keep_rest);

// `before_commit` is called when everything is written, and has yet to get its name.
void save_safetensors(io::System& system, const std::filesystem::path& path,
                      std::vector<NamedTensor> tensors, const format::TextMap& metadata,
                      storage::IfExists if_exists, const OnBytes& on_bytes,
                      const std::function<void()>& before_commit);

// A directory with model-00001-of-00002.safetensors, ... and model.safetensors.index.json. A file
// has no more than `max_bytes` of tensors, but for one that is larger alone.
void save_sharded_safetensors(io::System& system, const std::filesystem::path& path,
                              std::vector<NamedTensor> tensors, const format::TextMap& metadata,
                              std::uint64_t max_bytes, storage::IfExists if_exists,
                              const OnBytes& on_bytes, const std::function<void()>& before_commit);

}  // namespace perdure::engine
