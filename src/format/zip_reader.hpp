// The directory of a zip file, believed only where everything that could be read in two ways
// agrees.
#pragma once

#include <perdure/file.hpp>
#include <string>
#include <vector>

namespace perdure::format {

// The records, in the order of the file, names without the top folder. What is refused, and why,
// stands in docs/format.md ("Reading"): any two readers that accept a file must see the same
// content in it. Error(corrupt) names file and offset; Error(unsupported) for compressed or
// encrypted records.
std::vector<CheckpointFile::Record> read_zip_directory(const Source& source);

}  // namespace perdure::format
