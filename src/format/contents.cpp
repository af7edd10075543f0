#include "format/contents.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "format/legacy.hpp"
#include "format/safetensors_file.hpp"
#include "format/torch_zip.hpp"

namespace perdure::format {
namespace {

constexpr std::uint64_t kHeadSize = 512;  // of a tar, the signature stands at 257

struct Beginning {
  std::string_view bytes;
  Format format;
  std::string_view name;
};

using namespace std::literals;

constexpr std::string_view kLegacy = "in the legacy format of PyTorch before 1.6";
constexpr Beginning kBeginnings[] = {
    {"PK\x03\x04"sv, Format::torch_zip, "a PyTorch zip"},
    // Pickles of the number 0x1950a86a20f9469cfc6c, the magic number of torch.save before 1.6, in
    // the protocols that it can be told to use.
    {"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv, Format::torch_legacy, kLegacy},
    {"\x80\x03\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv, Format::torch_legacy, kLegacy},
    {"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv,
     Format::torch_legacy, kLegacy},
    {"\x80\x05\x95\x0d\0\0\0\0\0\0\0\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv,
     Format::torch_legacy, kLegacy},
    {"PYTORCH1"sv, Format::unknown, "in the format of Caffe2"},
    {"\x80\x02"sv, Format::unknown, "a plain pickle"},
    {"\x80\x03"sv, Format::unknown, "a plain pickle"},
    {"\x80\x04"sv, Format::unknown, "a plain pickle"},
    {"\x80\x05"sv, Format::unknown, "a plain pickle"},
    {"\x93NUMPY"sv, Format::unknown, "an array of NumPy"},
    {"\x89HDF\r\n"sv, Format::unknown, "an HDF5 file"},
    {"GGUF"sv, Format::unknown, "a GGUF file"},
    {"\x1f\x8b"sv, Format::unknown, "compressed with gzip"},
    {"\x28\xb5\x2f\xfd"sv, Format::unknown, "compressed with Zstandard"},
};
constexpr Beginning kTar = {"ustar"sv, Format::torch_tar,
                            "in the tar format of PyTorch before 0.2"};
constexpr std::size_t kTarSignature = 257;
// Begins with a length, so with any byte.
constexpr Beginning kSafetensors = {""sv, Format::safetensors, "safetensors"};

std::string read_head(const Source& source) {
  std::string head(std::min<std::uint64_t>(source.size(), kHeadSize), '\0');
  source.read(0, std::as_writable_bytes(std::span(head)));
  return head;
}

// Null for what is not known.
const Beginning* beginning_of(const Source& source) {
  const std::string head = read_head(source);
  // What begins with a length may begin as anything; a pickle or an array has no { at that place.
  if (is_safetensors(head) && !head.starts_with(kBeginnings[0].bytes)) return &kSafetensors;
  for (const Beginning& known : kBeginnings)
    if (head.starts_with(known.bytes)) return &known;
  if (head.size() > kTarSignature && head.substr(kTarSignature).starts_with(kTar.bytes))
    return &kTar;
  return nullptr;
}

[[noreturn]] void refuse(const Source& source) {
  if (source.size() == 0)
    throw Error(ErrorCode::corrupt, fmt::format("{}: the file is empty", source.name()));
  const std::string name = describe_format(source);
  if (format_of(source) != Format::unknown)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: {}, which perdure does not read", source.name(), name));
  throw Error(ErrorCode::corrupt,
              fmt::format("{}: does not begin as a PyTorch file (at offset 0); it was overwritten, "
                          "or is something else{}",
                          source.name(), name.empty() ? "" : ": " + name));
}

}  // namespace

const std::shared_ptr<TensorStorage>& Contents::add_storage(CheckpointFile::Record record) {
  const auto& made = storages.emplace_back(std::make_shared<TensorStorage>());
  made->size = record.size;
  made->record = static_cast<std::int64_t>(storages.size() - 1);
  places.push_back(records.size());
  records.push_back(std::move(record));
  return made;
}

bool has_records_of(const Value& state, std::size_t ranks) {
  if (ranks == 1) return true;
  if (!state.contains("ranks") || !state["ranks"].is_mapping()) return false;
  const Dict& records = state["ranks"].as_dict();
  if (records.size() != ranks - 1) return false;
  for (std::size_t rank = 1; rank < ranks; ++rank) {
    const Value* record = records.find(Value(std::to_string(rank)));
    if (record == nullptr || !record->is_mapping()) return false;
  }
  return true;
}

Format format_of(const Source& source) {
  const Beginning* known = beginning_of(source);
  return known == nullptr ? Format::unknown : known->format;
}

std::string describe_format(const Source& source) {
  const Beginning* known = beginning_of(source);
  return known == nullptr ? "" : std::string(known->name);
}

Contents read_contents(const Source& source, bool allow_opaque) {
  switch (format_of(source)) {
    case Format::torch_zip:
      return read_torch_zip(ZipRecords(source), allow_opaque);
    case Format::safetensors:
      return read_safetensors_file(source);
    case Format::torch_legacy:
      return read_legacy(source, allow_opaque);
    case Format::torch_tar:
    case Format::unknown:
      break;
  }
  refuse(source);
}

}  // namespace perdure::format
