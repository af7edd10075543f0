// The directory of a zip file, believed only where everything that could be read in two ways
// agrees.
#pragma once

#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::format {

// A record that is compressed, as the code in a TorchScript archive is: its size is that of the
// bytes in the file, its checksum that of what they unpack to.
struct PackedRecord {
  CheckpointFile::Record record;
  std::uint64_t unpacked = 0;  // bytes
};

// The records, in the order of the file, names without the top folder; those that are compressed
// apart, in `packed`. What is refused, and why, stands in docs/format.md ("Reading"): any two
// readers that accept a file must see the same content in it. Error(corrupt) names file and offset;
// Error(unsupported) for what is compressed otherwise than by deflate, and, without `packed`, at
// all.
std::vector<CheckpointFile::Record> read_zip_directory(const Source& source,
                                                       std::vector<PackedRecord>* packed = nullptr);
// The record whose entry stands last in the directory; the rest of the archive is not read, so not
// checked. Null where that is not the one of this name, or compressed. Error(corrupt) as above.
std::optional<CheckpointFile::Record> find_last_record(const Source& source, std::string_view name);
// Error(unsupported), for who has no use for it.
[[noreturn]] void refuse_packed(const PackedRecord& packed);

}  // namespace perdure::format
