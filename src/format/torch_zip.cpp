#include "format/torch_zip.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>

#include "format/decoder.hpp"

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

void refuse_torch_script(const ZipRecords& zip) {
  if (zip.find("constants.pkl") == nullptr) return;
  throw Error(ErrorCode::unsupported,
              fmt::format("{}: a TorchScript archive (torch.jit.save, or torch::save of LibTorch), "
                          "not a checkpoint; save the state_dict instead",
                          zip.source().name()));
}

}  // namespace

Contents read_torch_zip(ZipRecords zip, bool allow_opaque) {
  refuse_torch_script(zip);
  Contents contents;
  contents.has_checksums = zip.has_checksums();
  contents.info = zip.read_info();
  check_byte_order(zip);
  check_version(zip);
  contents.index = zip.read_index();
  contents.format = contents.info ? "perdure (PyTorch zip)" : "PyTorch zip";
  read_structure(zip, allow_opaque, contents);
  contents.records = std::move(zip).take();
  return contents;
}

void read_structure(const ZipRecords& zip, bool allow_opaque, Contents& contents) {
  const std::string pickle = zip.read_required("data.pkl");
  const auto find = [&](std::string_view key) { return zip.find(fmt::format("data/{}", key)); };
  const auto size = [&](std::string_view key) -> std::optional<std::uint64_t> {
    const auto* record = find(key);
    return record == nullptr ? std::nullopt : std::optional(record->size);
  };
  Decoded decoded =
      with_file_name(zip.source(), [&] { return decode(read_pickle(pickle), size, allow_opaque); });
  contents.value = std::move(decoded.value);
  contents.storages = std::move(decoded.storages);
  for (const std::string& key : decoded.keys) contents.places.push_back(zip.place_of(*find(key)));
}

}  // namespace perdure::format
