#include "format/torch_zip.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>

#include "format/torch_script.hpp"

namespace perdure::format {
namespace {

void check_byte_order(const ZipRecords& zip) {
  const auto* order = zip.find("byteorder");
  if (order == nullptr || zip.read_text(*order) == "little") return;
  throw Error(
      ErrorCode::unsupported,
      fmt::format("{}: written on a big-endian machine; load it with torch.load and save it again",
                  zip.source().name()));
}

void check_version(const ZipRecords& zip) {
  const std::string& name = zip.source().name();
  if (zip.find("model.json") != nullptr)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: a TorchScript archive of before PyTorch 1.4; load it with "
                            "torch.jit.load and save it again",
                            name));
  const auto* record = zip.find("version");
  if (record == nullptr) record = zip.find(".data/version");
  if (record == nullptr)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: a zip file without a version, so not a PyTorch checkpoint", name));
  const std::string text = zip.read_text(*record);
  int version = 0;
  std::from_chars(text.data(), text.data() + text.size(), version);
  if (version < 1 || version > 10)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: PyTorch file format version {}; this perdure reads 1 to 10", name,
                            repr(Value(text))));
}

std::string describe(const ZipRecords& zip, const Contents& contents) {
  if (zip.is_torch_script()) return "TorchScript";
  return contents.info ? "perdure (PyTorch zip)" : "PyTorch zip";
}

}  // namespace

Contents read_torch_zip(ZipRecords zip, bool allow_opaque) {
  Contents contents;
  contents.has_checksums = zip.has_checksums();
  // First, so that a newer format is told as such and not as damage.
  contents.info = zip.read_info();
  if (contents.info) contents.metadata = contents.info->metadata;
  check_byte_order(zip);
  check_version(zip);
  contents.index = zip.read_index();
  contents.format = describe(zip, contents);
  read_structure(zip, allow_opaque, contents);
  contents.records = std::move(zip).take();
  return contents;
}

void read_structure(const ZipRecords& zip, bool allow_opaque, Contents& contents) {
  contents.storages.clear();
  contents.places.clear();
  if (zip.is_torch_script()) return read_script_structure(zip, allow_opaque, contents);
  contents.value = read_pickle_record(zip, {}, allow_opaque, contents);
  const std::size_t ranks = contents.info ? contents.info->ranks : 1;
  if (!has_records_of(contents.value, ranks))
    throw Error(ErrorCode::corrupt,
                fmt::format("{}: .perdure/checkpoint.json says that {} ranks have saved it, and "
                            "data.pkl has not the records of so many",
                            zip.source().name(), ranks));
}

Value read_pickle_record(const ZipRecords& zip, const PickleOrigin& origin, bool allow_opaque,
                         Contents& contents) {
  const std::string pickle = zip.read_required(origin.name);
  const auto find = [&](std::string_view key) {
    return zip.find(fmt::format("{}/{}", origin.folder, key));
  };
  const auto size = [&](std::string_view key) -> std::optional<std::uint64_t> {
    const auto* record = find(key);
    return record == nullptr ? std::nullopt : std::optional(record->size);
  };
  Decoded decoded = with_file_name(
      zip.source(), [&] { return decode(read_pickle(pickle), size, allow_opaque, origin); });
  for (std::size_t i = 0; i < decoded.storages.size(); ++i) {
    decoded.storages[i]->record = static_cast<std::int64_t>(contents.storages.size());
    contents.storages.push_back(std::move(decoded.storages[i]));
    contents.places.push_back(zip.place_of(*find(decoded.keys[i])));
  }
  return std::move(decoded.value);
}

}  // namespace perdure::format
