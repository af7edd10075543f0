// .perdure/checkpoint.json: what a checkpoint says of itself. docs/format.md names the fields.
#pragma once

#include <perdure/file.hpp>
#include <string>
#include <string_view>

namespace perdure::format {

inline constexpr int kFormatVersion = 1;

std::string write_checkpoint_json(const CheckpointInfo& info);
// Error(corrupt) for what is no such record, Error(unsupported) for a newer format version.
CheckpointInfo read_checkpoint_json(std::string_view text);

}  // namespace perdure::format
