#include <fmt/format.h>
#include <fmt/ranges.h>

#include <unordered_map>

#include "engine/dcp_parts.hpp"
#include "engine/gathered_tensor.hpp"
#include "engine/joined_file.hpp"
#include "engine/joined_source.hpp"
#include "engine/rank_plan.hpp"
#include "engine/rank_view.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::engine {
namespace {

namespace fs = std::filesystem;
using format::DcpChunk;
using format::DcpItem;

class DcpReader {
 public:
  DcpReader(const fs::path& directory, bool allow_opaque)
      : parts_(std::make_shared<DcpParts>(directory)),
        allow_opaque_(allow_opaque),
        joined_(std::make_shared<JoinedSource>(directory.string())) {}

  JoinedFile open() {
    contents_.format = kDcpFormat;
    std::vector<Value> values;
    for (const DcpItem& item : parts_->metadata().items)
      values.push_back(item.is_tensor ? tensor(item) : other(item));
    contents_.value = format::with_file_name(*joined_, [&] {
      return parts_->record() ? state_of_ranks(values)
                              : format::join_dcp_state(parts_->metadata().items, values);
    });
    return {joined_, std::move(contents_)};
  }

 private:
  // What is no tensor stands in the records of the ranks, with all that a name and a path do not
  // tell; its items are for readers of DCP.
  Value state_of_ranks(const std::vector<Value>& values) {
    const format::RanksRecord& record = *parts_->record();
    const std::vector<DcpItem>& items = parts_->metadata().items;
    contents_.info = record.info;
    contents_.info->ranks = record.ranks;
    contents_.metadata = record.info.metadata;
    contents_.bytes = record.bytes;
    contents_.reads_in_place = true;
    std::unordered_map<std::string_view, const Value*> named;
    for (std::size_t i = 0; i < items.size(); ++i) named.emplace(items[i].name, &values[i]);
    const auto find = [&](const std::string& name) -> const Value* {
      const auto found = named.find(name);
      return found == named.end() ? nullptr : found->second;
    };
    const auto record_of = [&](std::size_t rank) -> const Value& {
      const Value* found = find(record_name(rank));
      if (found == nullptr || !found->is_mapping())
        throw Error(ErrorCode::corrupt, fmt::format("there is no record of rank {}", rank));
      return *found;
    };
    Value state = with_shared(record_of(0), find);
    Dict others;
    for (std::size_t rank = 1; rank < record.ranks; ++rank)
      others.set(Value(std::to_string(rank)), record_of(rank));
    if (!others.empty()) state.as_dict().set(Value(kRanksKey), std::move(others));
    return state;
  }

  // Where two names have the same places, they are one tensor (tied weights).
  Value tensor(const DcpItem& item) {
    std::string key = fmt::format("{} {}", dtype_name(item.dtype), fmt::join(item.shape, ","));
    for (const DcpChunk& chunk : item.chunks)
      key += fmt::format(" {}:{}@{}", chunk.place.file, chunk.place.offset,
                         fmt::join(chunk.offsets, ","));
    if (item.chunks.empty()) return fresh_tensor(item);
    const auto [known, fresh] = tensors_.try_emplace(std::move(key), Value());
    if (fresh) known->second = fresh_tensor(item);
    return Value(known->second.as_tensor());
  }

  Value fresh_tensor(const DcpItem& item) {
    Tensor out = format::with_file_name(
        *joined_, [&] { return format::contiguous_tensor(item.dtype, item.shape); });
    CheckpointFile::Record record{.name = item.name, .offset = 0, .size = 0, .crc32 = 0};
    bool has_checksum = true;
    if (item.chunks.empty()) {
      record.offset = joined_->size();
    } else {
      record.size = out.numel() * itemsize(item.dtype);
      if (item.chunks.size() == 1) {
        const TensorPiece piece = parts_->piece(item, item.chunks[0]);
        has_checksum = piece.crc32.has_value();
        record.crc32 = piece.crc32.value_or(0);
        record.offset = joined_->append(piece.source, piece.offset, record.size);
      } else {
        has_checksum = false;  // but those of its pieces are compared
        record.offset = joined_->append(gathered(item, record.size), 0, record.size);
      }
    }
    out.storage = add_storage(std::move(record), has_checksum);
    return Value(std::move(out));
  }

  // Of several ranks, each reads few of the pieces, and so looks at no others. What anybody else
  // has written is looked at as a whole before any of it is used.
  std::shared_ptr<const Source> gathered(const DcpItem& item, std::uint64_t size) {
    if (!parts_->record()) return gathered_tensor(*parts_, item);
    format::Contents::Gathered gathered{.name = item.name,
                                        .itemsize = itemsize(item.dtype),
                                        .offsets = std::vector<std::int64_t>(item.shape.size()),
                                        .sizes = item.shape,
                                        .pieces = {}};
    for (const DcpChunk& chunk : item.chunks)
      gathered.pieces.push_back({chunk.offsets, chunk.sizes, [parts = parts_, &item, &chunk] {
                                   TensorPiece piece = parts->piece(item, chunk);
                                   return format::Contents::PieceBytes{std::move(piece.source),
                                                                       piece.offset, piece.crc32};
                                 }});
    contents_.gathered.emplace(contents_.storages.size(), std::move(gathered));
    return std::make_shared<LateSource>(
        joined_->name(), size, [parts = parts_, &item] { return gathered_tensor(*parts, item); });
  }

  static std::shared_ptr<const Source> gathered_tensor(DcpParts& parts, const DcpItem& item) {
    std::vector<TensorPiece> pieces;
    for (const DcpChunk& chunk : item.chunks) pieces.push_back(parts.piece(item, chunk));
    return std::make_shared<GatheredTensor>(repr(Value(item.name)), itemsize(item.dtype),
                                            item.shape, std::move(pieces));
  }

  const std::shared_ptr<TensorStorage>& add_storage(CheckpointFile::Record record,
                                                    bool has_checksum) {
    contents_.has_checksums = contents_.has_checksums || has_checksum;
    contents_.unchecked.push_back(!has_checksum);
    return contents_.add_storage(std::move(record));
  }

  // Any value; tensors in it get their storages here.
  Value other(const DcpItem& item) {
    DcpParts::Part part = parts_->value(item, allow_opaque_);
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

  std::shared_ptr<DcpParts> parts_;  // which what is read late keeps
  bool allow_opaque_;
  std::shared_ptr<JoinedSource> joined_;
  std::unordered_map<std::string, Value> tensors_;  // by their places
  format::Contents contents_;
};

}  // namespace

JoinedFile open_dcp(const fs::path& directory, bool allow_opaque) {
  return DcpReader(directory, allow_opaque).open();
}

}  // namespace perdure::engine
