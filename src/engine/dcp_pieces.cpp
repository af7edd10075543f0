#include "engine/dcp_pieces.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "engine/bulk_read.hpp"
#include "engine/file_records.hpp"
#include "engine/gather.hpp"
#include "engine/joined_source.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::engine {
namespace {

using format::DcpChunk;
using format::DcpItem;

bool is_all_of(const BoxRead& box, const DcpChunk& chunk) {
  return box.sizes == chunk.sizes &&
         std::ranges::all_of(box.offsets, [](auto x) { return x == 0; });
}

// The elements of a box, as a view of the chunk.
Tensor view_of(const DcpItem& item, const DcpChunk& chunk, const BoxRead& box) {
  Tensor view = format::contiguous_tensor(item.dtype, chunk.sizes);
  bool inside = box.offsets.size() == chunk.sizes.size() && box.sizes.size() == chunk.sizes.size();
  for (std::size_t d = 0; inside && d < chunk.sizes.size(); ++d)
    inside = box.offsets[d] >= 0 && box.sizes[d] >= 0 && box.sizes[d] <= chunk.sizes[d] &&
             box.offsets[d] <= chunk.sizes[d] - box.sizes[d];
  if (!inside)
    throw Error(ErrorCode::invalid,
                fmt::format("{}: a box of {} at {} is asked for of a piece of {}",
                            repr(Value(item.name)), repr(Value::size(box.sizes)),
                            repr(Value::size(box.offsets)), repr(Value::size(chunk.sizes))));
  for (std::size_t d = 0; d < box.offsets.size(); ++d)
    view.storage_offset += box.offsets[d] * view.strides[d];
  view.shape = box.sizes;
  return view;
}

// The boxes that are to be read, by the piece that each is of.
class Boxes {
 public:
  Boxes(DcpParts& parts, const std::vector<BoxRead>& boxes) : parts_(parts), source_(parts.name()) {
    for (const BoxRead& box : boxes) add(box);
  }

  void read() {
    std::vector<RecordRead> reads;
    for (auto& [place, piece] : pieces_) reads.push_back(piece.read());
    bulk_read(source_, reads, [this](const RecordRead& read, const DamagedBlock& block) {
      const Place place = source_.place(block.offset);
      throw Error(
          ErrorCode::corrupt,
          fmt::format("{}: {} is damaged: {} bytes at offset {} do not have the checksum that "
                      "they were written with",
                      place.name, repr(Value(read.record->name)), block.size, place.offset));
    });
  }

 private:
  struct Piece {
    CheckpointFile::Record record;
    bool has_checksum = false;
    MutableBytes whole;           // where all of it goes as it is
    std::vector<Gather> gathers;  // for what goes elsewhere

    RecordRead read() {
      RecordRead read;
      read.record = &record;
      read.block_size = record.size;
      if (has_checksum) read.checksums = std::span(&record.crc32, 1);
      if (gathers.empty())
        read.into = whole;
      else
        read.sink = [this](std::uint64_t at, ConstBytes bytes) {
          for (const Gather& gather : gathers) gather.take(at, bytes);
          if (!whole.empty())
            std::ranges::copy(bytes, whole.begin() + static_cast<std::ptrdiff_t>(at));
        };
      return read;
    }
  };

  void add(const BoxRead& box) {
    const DcpItem& item = parts_.metadata().items.at(box.item);
    const DcpChunk& chunk = item.chunks.at(box.chunk);
    const Tensor view = view_of(item, chunk, box);
    if (view.numel() == 0) return;
    Piece& piece = piece_of(box, item, chunk);
    if (is_all_of(box, chunk) && piece.whole.empty())
      piece.whole = MutableBytes(box.into, piece.record.size);
    else
      piece.gathers.emplace_back(view, 0, view.numel(), box.into);
  }

  Piece& piece_of(const BoxRead& box, const DcpItem& item, const DcpChunk& chunk) {
    const auto [at, fresh] = pieces_.try_emplace({box.item, box.chunk});
    Piece& piece = at->second;
    if (!fresh) return piece;
    TensorPiece found = parts_.piece(item, chunk);
    piece.record.name = item.name;
    piece.record.size =
        format::contiguous_tensor(item.dtype, chunk.sizes).numel() * itemsize(item.dtype);
    piece.record.crc32 = found.crc32.value_or(0);
    piece.has_checksum = found.crc32.has_value();
    piece.record.offset = source_.append(std::move(found.source), found.offset, piece.record.size);
    return piece;
  }

  DcpParts& parts_;
  JoinedSource source_;
  std::map<std::pair<std::size_t, std::size_t>, Piece> pieces_;  // by item and chunk
};

}  // namespace

void read_boxes(DcpParts& parts, const std::vector<BoxRead>& boxes) { Boxes(parts, boxes).read(); }

std::string read_value_bytes(DcpParts& parts, const DcpItem& item) {
  const DcpParts::Part part = parts.held_value(item);
  std::vector<RecordRead> reads;
  if (part.contents.has_checksums)
    for (const CheckpointFile::Record& record : part.contents.records)
      reads.push_back(read_of(part.contents, record, {}));
  bulk_read(*part.source, reads, [&](const RecordRead& read, const DamagedBlock& block) {
    const Place place = part.source->place(block.offset);
    throw Error(ErrorCode::corrupt,
                fmt::format("{}: {} is damaged: {} bytes at offset {} (record {}) do not have the "
                            "checksum that they were written with",
                            place.name, repr(Value(item.name)), block.size, place.offset,
                            read.record->name));
  });
  std::string bytes(part.source->size(), '\0');
  part.source->read(0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

}  // namespace perdure::engine
