// What a compressed record unpacks to, piece by piece.
#pragma once

#include <cstdint>
#include <perdure/file.hpp>

#include "format/zip_reader.hpp"

namespace perdure::format {

// The code of the largest models is a few MB; zeros that are compressed would unpack to a thousand
// times the file.
inline constexpr std::uint64_t kMaxUnpacked = std::uint64_t{1} << 30;

// Error(corrupt) where the record does not unpack to bytes of that number and checksum. Takes
// little memory, whatever the number is.
void check_unpacked(const Source& source, const PackedRecord& packed);

}  // namespace perdure::format
