#include <fmt/format.h>

#include "engine/dcp_parts.hpp"
#include "engine/gathered_tensor.hpp"
#include "engine/joined_file.hpp"
#include "engine/joined_source.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::engine {
namespace {

namespace fs = std::filesystem;
using format::DcpChunk;
using format::DcpItem;

class DcpReader {
 public:
  DcpReader(const fs::path& directory, bool allow_opaque)
      : parts_(directory),
        allow_opaque_(allow_opaque),
        joined_(std::make_shared<JoinedSource>(directory.string())) {}

  JoinedFile open() {
    contents_.format = "torch.distributed.checkpoint";
    std::vector<Value> values;
    for (const DcpItem& item : parts_.metadata().items)
      values.push_back(item.is_tensor ? tensor(item) : other(item));
    contents_.value = format::with_file_name(
        *joined_, [&] { return format::join_dcp_state(parts_.metadata().items, values); });
    return {joined_, std::move(contents_)};
  }

 private:
  Value tensor(const DcpItem& item) {
    Tensor out = format::with_file_name(
        *joined_, [&] { return format::contiguous_tensor(item.dtype, item.shape); });
    std::vector<TensorPiece> pieces;
    for (const DcpChunk& chunk : item.chunks) pieces.push_back(parts_.piece(item, chunk));
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
    DcpParts::Part part = parts_.value(item, allow_opaque_);
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

  DcpParts parts_;
  bool allow_opaque_;
  std::shared_ptr<JoinedSource> joined_;
  format::Contents contents_;
};

}  // namespace

JoinedFile open_dcp(const fs::path& directory, bool allow_opaque) {
  return DcpReader(directory, allow_opaque).open();
}

}  // namespace perdure::engine
