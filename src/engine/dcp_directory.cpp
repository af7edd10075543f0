#include <fmt/format.h>

#include "engine/file_pool.hpp"
#include "engine/gathered_tensor.hpp"
#include "engine/joined_file.hpp"
#include "engine/joined_source.hpp"
#include "engine/strided_source.hpp"
#include "format/dcp_metadata.hpp"
#include "format/pickle_reader.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::engine {
namespace {

namespace fs = std::filesystem;
using format::DcpChunk;
using format::DcpItem;

constexpr std::string_view kMetadata = ".metadata";

class DcpReader {
 public:
  DcpReader(const fs::path& directory, bool allow_opaque)
      : pool_(FilePool::open(directory)),
        allow_opaque_(allow_opaque),
        metadata_(read_metadata(directory)),
        files_(metadata_.files.size()),
        joined_(std::make_shared<JoinedSource>(directory.string())) {}

  JoinedFile open() {
    contents_.format = "torch.distributed.checkpoint";
    std::vector<Value> values;
    for (const DcpItem& item : metadata_.items)
      values.push_back(item.is_tensor ? tensor(item) : other(item));
    contents_.value = format::with_file_name(
        *joined_, [&] { return format::join_dcp_state(metadata_.items, values); });
    return {joined_, std::move(contents_)};
  }

 private:
  format::DcpMetadata read_metadata(const fs::path& directory) const {
    const auto source = pool_->source(std::string(kMetadata));
    if (source->size() > format::kMaxPickle)
      throw Error(ErrorCode::unsupported, fmt::format("{}: more than 1 GiB", source->name()));
    std::string pickle(source->size(), '\0');
    source->read(0, std::as_writable_bytes(std::span(pickle)));
    try {
      return format::read_dcp_metadata(pickle);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}/{}", directory.string(), error.what()));
    }
  }

  std::shared_ptr<const Source> file(std::size_t number) {
    if (!files_[number]) files_[number] = pool_->source(metadata_.files[number]);
    return files_[number];
  }

  [[noreturn]] static void damaged(const Source& source, std::uint64_t offset, const DcpItem& item,
                                   const std::string& what) {
    const Place place = source.place(offset);
    throw Error(ErrorCode::corrupt, fmt::format("{}: {} at offset {} {}", place.name,
                                                repr(Value(item.name)), place.offset, what));
  }

  // What torch.save has written there.
  struct Part {
    std::shared_ptr<const Source> source;
    format::Contents contents;
  };
  Part read_part(const DcpItem& item, const format::DcpPlace& place, bool allow_opaque) {
    try {
      auto source = std::make_shared<SubSource>(file(place.file), place.offset, place.length);
      format::Contents contents = format::read_contents(*source, allow_opaque);
      return {std::move(source), std::move(contents)};
    } catch (const Error& error) {
      throw Error(error.code(),
                  fmt::format("{} ({}, offset {}): {}", joined_->name(), repr(Value(item.name)),
                              place.offset, error.what()),
                  error.errno_value());
    }
  }

  TensorPiece piece(const DcpItem& item, const DcpChunk& chunk) {
    Part part = read_part(item, chunk.place, false);
    const Value& value = part.contents.value;
    if (value.kind() != Kind::tensor) damaged(*part.source, 0, item, "is no tensor");
    const Tensor& tensor = value.as_tensor();
    if (tensor.dtype != item.dtype || tensor.shape != chunk.sizes || tensor.storage->record < 0)
      damaged(*part.source, 0, item,
              fmt::format("is a {} of {}, where .metadata has a {} of {}", dtype_name(tensor.dtype),
                          repr(Value::size(tensor.shape)), dtype_name(item.dtype),
                          repr(Value::size(chunk.sizes))));
    if (tensor.conj || tensor.neg)
      throw Error(
          ErrorCode::unsupported,
          fmt::format("{}: {} has a piece that is conjugated or negated lazily; load it with "
                      "torch, resolve it and save it again",
                      joined_->name(), repr(Value(item.name))));
    const auto& record = part.contents.record_of(static_cast<std::size_t>(tensor.storage->record));
    const Tensor plain = format::contiguous_tensor(tensor.dtype, tensor.shape);
    const std::uint64_t size = plain.numel() * itemsize(plain.dtype);
    const bool has_checksum = part.contents.has_checksums;
    if (tensor.strides == plain.strides && tensor.storage_offset == 0 && record.size == size)
      return {chunk.offsets, chunk.sizes, part.source, record.offset,
              has_checksum ? std::optional(record.crc32) : std::nullopt};
    if (size > record.size) damaged(*part.source, 0, item, "has fewer bytes than elements");
    auto strided =
        std::make_shared<StridedSource>(part.source, record, has_checksum, tensor, last_loaded_);
    return {chunk.offsets, chunk.sizes, std::move(strided), 0, std::nullopt};
  }

  Value tensor(const DcpItem& item) {
    Tensor out = format::with_file_name(
        *joined_, [&] { return format::contiguous_tensor(item.dtype, item.shape); });
    std::vector<TensorPiece> pieces;
    for (const DcpChunk& chunk : item.chunks) pieces.push_back(piece(item, chunk));
    CheckpointFile::Record record{.name = item.name, .offset = 0, .size = 0, .crc32 = 0};
    bool has_checksum = true;
    if (pieces.empty()) {
      record.offset = joined_->size();
    } else {
      record.size = out.numel() * itemsize(item.dtype);
      if (pieces.size() == 1) {
        has_checksum = pieces[0].crc32.has_value();
        record.crc32 = pieces[0].crc32.value_or(0);
        record.offset = joined_->append(pieces[0].source, pieces[0].offset, record.size);
      } else {
        has_checksum = false;  // but those of its pieces are compared
        record.offset = joined_->append(
            std::make_shared<GatheredTensor>(repr(Value(item.name)), itemsize(item.dtype),
                                             item.shape, std::move(pieces)),
            0, record.size);
      }
    }
    out.storage = add_storage(std::move(record), has_checksum);
    return Value(std::move(out));
  }

  const std::shared_ptr<TensorStorage>& add_storage(CheckpointFile::Record record,
                                                    bool has_checksum) {
    contents_.has_checksums = contents_.has_checksums || has_checksum;
    contents_.unchecked.push_back(!has_checksum);
    return contents_.add_storage(std::move(record));
  }

  // Any value; tensors in it get their storages here.
  Value other(const DcpItem& item) {
    const format::DcpPlace& place = item.chunks[0].place;
    Part part = read_part(item, place, allow_opaque_);
    if (part.contents.storages.empty()) return std::move(part.contents.value);
    const std::uint64_t begin = joined_->append(part.source, 0, part.source->size());
    for (std::size_t i = 0; i < part.contents.storages.size(); ++i) {
      CheckpointFile::Record record = part.contents.record_of(i);
      record.offset += begin;
      record.name = fmt::format("{}/{}", item.name, record.name);
      const std::shared_ptr<TensorStorage> storage = part.contents.storages[i];
      storage->record = static_cast<std::int64_t>(contents_.storages.size());
      add_storage(std::move(record), part.contents.has_checksums);
      contents_.storages.back() = storage;
    }
    return std::move(part.contents.value);
  }

  std::shared_ptr<FilePool> pool_;
  bool allow_opaque_;
  format::DcpMetadata metadata_;
  std::vector<std::shared_ptr<const Source>> files_;
  std::shared_ptr<JoinedSource> joined_;
  std::shared_ptr<LastLoaded> last_loaded_ = std::make_shared<LastLoaded>();
  format::Contents contents_;
};

}  // namespace

JoinedFile open_dcp(const fs::path& directory, bool allow_opaque) {
  return DcpReader(directory, allow_opaque).open();
}

}  // namespace perdure::engine
