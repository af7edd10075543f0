// Checkpoints that are more than one file, opened as one.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <perdure/file.hpp>

#include "format/contents.hpp"

namespace perdure::engine {

struct JoinedFile {
  std::shared_ptr<const Source> source;  // the parts end to end: contents has offsets in it
  format::Contents contents;
};

// Nothing where `path` is no such checkpoint, but one file by itself or something else.
std::optional<JoinedFile> open_joined(const std::filesystem::path& path, bool allow_opaque);

bool is_joined_directory(const std::filesystem::path& path);

inline constexpr const char* kDcpFormat = "torch.distributed.checkpoint";
// A directory of torch.distributed.checkpoint: what it holds, nested again, its tensors whole.
JoinedFile open_dcp(const std::filesystem::path& directory, bool allow_opaque);
// The files that an index of safetensors names.
JoinedFile open_safetensors_index(const std::filesystem::path& index);

}  // namespace perdure::engine
