// A file's tree as JSON for programs.
#pragma once

#include <perdure/file.hpp>
#include <string>

#include "tree.hpp"

namespace perdure::cli {

// One object: path, size, checksums, info, totals, and "entries", a flat array in the order of the
// file, one entry a line, so that a large file needs little memory here and in line-wise tools.
void print_file_json(const CheckpointFile& file, const std::string& key, const Summary& summary);

}  // namespace perdure::cli
