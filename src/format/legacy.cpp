// The file, from its beginning:
//
//   1. a pickle of the magic number              4. the object; a storage is the persistent id
//   2. a pickle of 1001, the version                ('storage', class, key, device, count, view)
//   3. a pickle of what machine wrote it         5. a list of the keys of all storages
//
// and then in the order of that list, for each storage: u64 count of its elements, their bytes. The
// bytes are little-endian on whichever machine they were saved: big-endian ones swap them.
#include "format/legacy.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <map>

#include "format/coding.hpp"
#include "format/decoder.hpp"
#include "format/pickle_span.hpp"

namespace perdure::format {
namespace {

constexpr std::int64_t kVersion = 1001;
constexpr std::uint64_t kCountSize = 8;

class LegacyReader {
 public:
  LegacyReader(const Source& source, bool allow_opaque)
      : source_(source), allow_opaque_(allow_opaque) {}

  Contents read() {
    next("the magic number");
    check_version();
    next("the description of the machine");
    Decoded decoded = next("the object");
    const Value keys = next("the list of storages").value;
    out_.format = "PyTorch legacy";
    out_.value = std::move(decoded.value);
    out_.storages = std::move(decoded.storages);
    place_storages(decoded, keys);
    return std::move(out_);
  }

 private:
  [[noreturn]] void damaged(const std::string& what, std::uint64_t offset) const {
    throw Error(ErrorCode::corrupt, fmt::format("{} (at offset {})", what, offset));
  }

  // Texts are copied into the values, so that nothing refers to the pickle afterwards.
  Decoded next(std::string_view name) {
    const std::uint64_t begin = at_;
    const std::string bytes = read_pickle_at(source_, begin);
    at_ += bytes.size();
    try {
      return decode(read_pickle(bytes), {}, allow_opaque_, {.name = name});
    } catch (const Error& error) {
      throw Error(error.code(),
                  fmt::format("{} (in the pickle at offset {})", error.what(), begin));
    }
  }

  void check_version() {
    const std::uint64_t begin = at_;
    const Value version = next("the version").value;
    if (version.kind() == Kind::integer && version.as_big_int() == nullptr &&
        version.as_int() == kVersion)
      return;
    throw Error(ErrorCode::unsupported,
                fmt::format("version {} of PyTorch's legacy format (at offset {}); there is none "
                            "but {}",
                            repr(version), begin, kVersion));
  }

  void place_storages(const Decoded& decoded, const Value& keys) {
    std::map<std::string, std::size_t> missing;  // key -> storage
    for (std::size_t i = 0; i < decoded.keys.size(); ++i) missing.emplace(decoded.keys[i], i);
    if (keys.kind() != Kind::list) damaged("the list of storages is no list", at_);
    out_.places.resize(missing.size());
    for (const Value& key : keys.as_items()) {
      const auto found = key.kind() == Kind::string ? missing.find(key.as_string()) : missing.end();
      if (found == missing.end() && decoded.has_opaque)
        throw Error(ErrorCode::unsupported,
                    fmt::format("the storage {} belongs to what is no plain data, so that how many "
                                "bytes it has is not known (at offset {})",
                                repr(key), at_));
      if (found == missing.end())
        damaged(fmt::format("the list of storages has {}, which no tensor refers to or which "
                            "stands in it twice",
                            repr(key)),
                at_);
      place(found->first, found->second, decoded.item_sizes[found->second]);
      missing.erase(found);
    }
    if (!missing.empty())
      damaged(fmt::format("the bytes of storage {} are not there", repr(missing.begin()->first)),
              at_);
    if (at_ != source_.size())
      damaged(fmt::format("{} bytes after the last storage", source_.size() - at_), at_);
  }

  void place(const std::string& key, std::size_t storage, std::size_t item_size) {
    const std::uint64_t left = source_.size() - at_;
    if (left < kCountSize) damaged("the file ends before its last storage", source_.size());
    char bytes[kCountSize];
    source_.read(at_, std::as_writable_bytes(std::span(bytes)));
    const auto count = get<std::uint64_t>(bytes);
    const std::uint64_t size = out_.storages[storage]->size;
    const std::uint64_t expected = size / item_size;
    if (count != expected)
      damaged(fmt::format("storage {} has {} elements here, and {} where a tensor refers to it",
                          repr(Value(key)), count, expected),
              at_);
    at_ += kCountSize;
    if (size > source_.size() - at_)
      damaged(fmt::format("storage {} has {} bytes, and the file ends after {} of them",
                          repr(Value(key)), size, source_.size() - at_),
              at_);
    out_.places[storage] = out_.records.size();
    out_.records.push_back({"data/" + key, at_, size, 0});
    at_ += size;
  }

  const Source& source_;
  const bool allow_opaque_;
  std::uint64_t at_ = 0;
  Contents out_;
};

}  // namespace

Contents read_legacy(const Source& source, bool allow_opaque) {
  return with_file_name(source, [&] { return LegacyReader(source, allow_opaque).read(); });
}

}  // namespace perdure::format
