#include "engine/dcp_parts.hpp"

#include <fmt/format.h>

#include "engine/joined_source.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/pickle_reader.hpp"
#include "format/safetensors_file.hpp"
#include "format/zip_records.hpp"

namespace perdure::engine {
namespace {

namespace fs = std::filesystem;
using format::DcpChunk;
using format::DcpItem;

// That of a run with long names for everything has a few KB.
constexpr std::uint64_t kMaxRecord = std::uint64_t{64} << 20;

std::optional<format::RanksRecord> read_record(FilePool& pool, const fs::path& directory) {
  if (!pool.has(format::kRanksName)) return std::nullopt;
  const auto source = pool.source(format::kRanksName);
  if (source->size() > kMaxRecord)
    throw Error(ErrorCode::unsupported, fmt::format("{}: more than 64 MiB", source->name()));
  std::string text(source->size(), '\0');
  source->read(0, std::as_writable_bytes(std::span(text)));
  try {
    format::RanksRecord record = format::read_ranks_json(text);
    record.bytes += text.size();
    return record;
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}/{}", directory.string(), error.what()));
  }
}

format::DcpMetadata read_metadata(FilePool& pool, const fs::path& directory,
                                  const std::string& name,
                                  const std::optional<format::RanksRecord>& record) {
  const auto source = pool.source(name);
  if (source->size() > format::kMaxPickle)
    throw Error(ErrorCode::unsupported, fmt::format("{}: more than 1 GiB", source->name()));
  std::string pickle(source->size(), '\0');
  source->read(0, std::as_writable_bytes(std::span(pickle)));
  if (record && (pickle.size() != record->metadata_size ||
                 format::crc32(format::as_bytes(pickle)) != record->metadata_crc32))
    throw Error(ErrorCode::corrupt, fmt::format("{}: does not have the checksum that {} has of it",
                                                source->name(), format::kRanksName));
  try {
    return format::read_dcp_metadata(pickle);
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}/{}", directory.string(), error.what()));
  }
}

[[noreturn]] void damaged(const Source& source, std::uint64_t offset, const DcpItem& item,
                          const std::string& what) {
  const Place place = source.place(offset);
  throw Error(ErrorCode::corrupt, fmt::format("{}: {} at offset {} {}", place.name,
                                              repr(Value(item.name)), place.offset, what));
}

}  // namespace

DcpParts::DcpParts(const fs::path& directory, const std::string& metadata)
    : name_(directory.string()),
      pool_(FilePool::open(directory)),
      record_(read_record(*pool_, directory)),
      metadata_(read_metadata(*pool_, directory, metadata, record_)),
      files_(metadata_.files.size()) {}

std::shared_ptr<const Source> DcpParts::file(std::size_t number) {
  const std::lock_guard guard(mutex_);
  if (!files_[number]) files_[number] = pool_->source(metadata_.files[number]);
  return files_[number];
}

// Calls `read` with the bytes of one; its errors say where they are.
template <class F>
auto DcpParts::in_item(const DcpItem& item, const format::DcpPlace& place, F&& read) {
  try {
    return read(std::make_shared<const SubSource>(file(place.file), place.offset, place.length));
  } catch (const Error& error) {
    throw Error(error.code(),
                fmt::format("{} ({}, offset {}): {}", name_, repr(Value(item.name)), place.offset,
                            error.what()),
                error.errno_value());
  }
}

DcpParts::Part DcpParts::read(const DcpItem& item, const format::DcpPlace& place, bool allow_opaque,
                              bool held) {
  return in_item(item, place, [&](std::shared_ptr<const Source> source) -> Part {
    if (held) source = std::make_shared<HeldSource>(*source);
    format::Contents contents = format::read_contents(*source, allow_opaque);
    return {std::move(source), std::move(contents)};
  });
}

std::uint64_t DcpParts::check_rest(const DcpItem& item, const format::DcpPlace& place) {
  return in_item(item, place, [](const std::shared_ptr<const Source>& source) {
    std::uint64_t bytes = 0;
    if (format::format_of(*source) != format::Format::torch_zip) return bytes;
    const format::ZipRecords zip(*source);
    for (const CheckpointFile::Record& record : zip.records())
      if (!record.name.starts_with("data/")) bytes += zip.read_text(record).size();
    return bytes;
  });
}

DcpParts::Part DcpParts::value(const DcpItem& item, bool allow_opaque) {
  return read(item, item.chunks[0].place, allow_opaque);
}

DcpParts::Part DcpParts::held_value(const DcpItem& item) {
  return read(item, item.chunks[0].place, false, true);
}

TensorPiece DcpParts::piece(const DcpItem& item, const DcpChunk& chunk) {
  Part part = read(item, chunk.place, false);
  const Value& value = part.contents.value;
  if (value.kind() != Kind::tensor) damaged(*part.source, 0, item, "is no tensor");
  const Tensor& tensor = value.as_tensor();
  if (tensor.dtype != item.dtype || tensor.shape != chunk.sizes || tensor.storage->record < 0)
    damaged(*part.source, 0, item,
            fmt::format("is a {} of {}, where .metadata has a {} of {}", dtype_name(tensor.dtype),
                        repr(Value::size(tensor.shape)), dtype_name(item.dtype),
                        repr(Value::size(chunk.sizes))));
  if (tensor.conj || tensor.neg)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: {} has a piece that is conjugated or negated lazily; load it with "
                            "torch, resolve it and save it again",
                            name_, repr(Value(item.name))));
  const auto& record = part.contents.record_of(static_cast<std::size_t>(tensor.storage->record));
  const Tensor plain = format::contiguous_tensor(tensor.dtype, tensor.shape);
  const std::uint64_t size = plain.numel() * itemsize(plain.dtype);
  const bool has_checksum = part.contents.has_checksums;
  if (tensor.strides == plain.strides && tensor.storage_offset == 0 && record.size == size)
    return {chunk.offsets, chunk.sizes, part.source, record.offset,
            has_checksum ? std::optional(record.crc32) : std::nullopt};
  if (size > record.size) damaged(*part.source, 0, item, "has fewer bytes than elements");
  auto strided = std::make_shared<StridedSource>(part.source, record, has_checksum, tensor,
                                                 last_loaded_, &item);
  return {chunk.offsets, chunk.sizes, std::move(strided), 0, std::nullopt};
}

}  // namespace perdure::engine
