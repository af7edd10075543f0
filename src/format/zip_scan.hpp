// The records of a zip file whose directory cannot be believed, found by the structures that stand
// around each of them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "format/coding.hpp"

namespace perdure::format {

// What one local header, with the data descriptor behind the bytes, or one entry of the directory
// says of a record. It may be wrong: that the bytes have the checksum is for the caller to compare.
struct RecordClaim {
  std::string name;                   // without the top folder; at most 64 bytes of it
  std::uint64_t data_offset = 0;      // at most the size of the file
  std::optional<std::uint64_t> size;  // nothing: a header without a descriptor that fits it
  std::uint32_t crc32 = 0;            // where there is a size
};

class ZipScan {
 public:
  // Reads the whole of `source` once. Error(unsupported) for more than eight million records.
  explicit ZipScan(const Source& source);

  // In the order of the file, those of the directory last. What lies inside of a record is its
  // content and claims nothing, be it a zip. A record ends where its descriptor is; where that is
  // not there, `known_size` may know. Where it does not, the record may be anything from there on,
  // and no header counts that the directory does not list.
  using KnownSize = std::function<std::optional<std::uint64_t>(std::string_view name)>;
  std::vector<RecordClaim> claims(const KnownSize& known_size = {}) const;

 private:
  // A claim and where it stands. Of the directory: where the record's header should stand, too.
  struct Found {
    RecordClaim claim;
    std::uint64_t offset = 0;
    std::optional<std::uint64_t> header_offset;
  };

  void look_through(std::string_view bytes, std::uint64_t base);
  void take(std::string_view bytes, std::uint64_t offset);
  void take_header(ByteReader& in, std::uint64_t offset);
  void take_descriptor(ByteReader& in, std::uint64_t offset);
  void take_entry(ByteReader& in, std::uint64_t offset);
  void settle_at(std::uint64_t offset, std::uint64_t size, std::uint32_t crc);
  void settle(RecordClaim& claim, std::uint64_t size, std::uint32_t crc) const;
  bool add(const Found& found);
  bool is_listed(const Found& header) const;

  std::uint64_t file_size_ = 0;
  std::vector<Found> found_;                          // in the order of the file
  std::map<std::uint64_t, std::size_t> waiting_;      // data offset -> header without a size yet
  std::multimap<std::uint64_t, std::size_t> listed_;  // header offset -> entry of the directory
};

}  // namespace perdure::format
