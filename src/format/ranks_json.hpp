// perdure.json in the directory of a checkpoint that several ranks have saved: what it says of
// itself, and a checksum of .metadata. docs/format.md names the fields.
#pragma once

#include <cstdint>
#include <perdure/file.hpp>
#include <string>
#include <string_view>

namespace perdure::format {

inline constexpr const char* kRanksName = "perdure.json";

struct RanksRecord {
  CheckpointInfo info;
  std::size_t ranks = 1;
  std::uint64_t bytes = 0;  // of all other files
  std::uint64_t metadata_size = 0;
  std::uint32_t metadata_crc32 = 0;
};

// JSON, whose last member is the CRC-32 of all that stands before it.
std::string write_ranks_json(const RanksRecord& record);
// Error(corrupt) for what is no such record or damaged, Error(unsupported) for a newer version.
RanksRecord read_ranks_json(std::string_view text);

}  // namespace perdure::format
