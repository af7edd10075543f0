// A file's tree as lines for people.
#pragma once

#include <cstdint>
#include <perdure/file.hpp>
#include <string>

#include "tree.hpp"

namespace perdure::cli {

// What the file is, its tree (only what `key` selects, where it is not ""), totals by dtype, and a
// warning where something in it is refused by load.
void print_file_text(const CheckpointFile& file, const std::string& key, const Summary& summary);

// Its tree and totals, of `root`.
void print_tree_text(const Value& root, const std::string& key, const Summary& summary);

std::string shape_text(const std::vector<std::int64_t>& sizes);  // "[3, 4]"
bool is_contiguous(const Tensor& tensor) noexcept;

}  // namespace perdure::cli
