#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <deque>

#include "engine/box_copy.hpp"
#include "engine/file_records.hpp"
#include "engine/gather.hpp"
#include "engine/joined_file.hpp"
#include "engine/joined_source.hpp"
#include "engine/rank_view.hpp"
#include "engine/storage_stream.hpp"
#include "format/crc32.hpp"
#include "format/safetensors_file.hpp"
#include "io/fresh_memory.hpp"

namespace perdure {

namespace {

// Another source, never past the page cache.
class CachedSource final : public Source {
 public:
  explicit CachedSource(const Source& inner) : inner_(inner) {}
  std::uint64_t size() const override { return inner_.size(); }
  const std::string& name() const override { return inner_.name(); }
  void read(std::uint64_t offset, MutableBytes into) const override { inner_.read(offset, into); }

 private:
  const Source& inner_;
};

}  // namespace

struct CheckpointFile::Parts {
  std::shared_ptr<const Source> source;
  format::Contents contents;
  Scratch scratch;
  bool shares_cache = false;

  Parts(std::shared_ptr<const Source> from, format::Contents what)
      : source(std::move(from)), contents(std::move(what)) {}

  void read(const std::vector<engine::RecordRead>& reads) const { read_from(*source, reads); }
  void read_from(const Source& from, const std::vector<engine::RecordRead>& reads) const {
    read_from(from, reads, refusal());
  }

  void read_from(const Source& from, const std::vector<engine::RecordRead>& reads,
                 const engine::OnDamage& on_damage) const {
    if (shares_cache)
      engine::bulk_read(CachedSource(from), reads, on_damage, scratch);
    else
      engine::bulk_read(from, reads, on_damage, scratch);
  }

  std::string describe(const Record& record, const engine::DamagedBlock& block) const {
    const Place place = source->place(block.offset);
    return fmt::format(
        "{}: {} is damaged: {} bytes at offset {} (record {}) do not have the checksum that they "
        "were written with",
        place.name, tensor_in(record), block.size, place.offset, record.name);
  }

  // The storages that `value` refers to and that are still to be read, in ascending order.
  std::vector<std::size_t> unread(const Value& value) const {
    std::vector<bool> wanted(contents.storages.size());
    engine::for_each_tensor(value, [&](const KeyPath& path, const Tensor& tensor) {
      const TensorStorage& storage = *tensor.storage;
      if (storage.record < 0 || storage.data != nullptr || storage.device == "meta") return;
      const auto number = static_cast<std::size_t>(storage.record);
      if (number >= wanted.size() || contents.storages[number] != tensor.storage)
        throw Error(ErrorCode::invalid, fmt::format("{}: {} is a tensor of another file",
                                                    source->name(), format_path(path)));
      wanted[number] = true;
    });
    std::vector<std::size_t> numbers;
    for (std::size_t i = 0; i < wanted.size(); ++i)
      if (wanted[i]) numbers.push_back(i);
    return numbers;
  }

  // Several storages, each into memory of its own.
  class Reads {
   public:
    explicit Reads(const Parts& parts) : parts_(parts), joined_(parts.source->name()) {}

    void add(std::size_t storage, MutableBytes into) {
      const format::Contents& contents = parts_.contents;
      if (const auto from = contents.gathered.find(storage); from != contents.gathered.end())
        add_pieces(from->second, into);
      else if (const auto cut = contents.cuts.find(storage); cut != contents.cuts.end())
        add_cut(cut->second, into);
      else
        reads_.push_back(engine::read_of(contents, contents.record_of(storage), into));
    }
    // Nothing of a block is written before its checksum was found right, where blocks have one.
    void compare_first() {
      for (engine::RecordRead& read : reads_)
        read.compare_first = !read.into.empty() && read.block_size <= format::kBlockSize;
    }
    void read() {
      parts_.read(reads_);
      if (!of_pieces_.empty()) parts_.read_pieces(joined_, of_pieces_);
    }

   private:
    void add_pieces(const format::Contents::Gathered& gathered, MutableBytes into) {
      for (const format::Contents::Piece& piece : gathered.pieces) {
        const engine::BoxCopy copy({piece.offsets, piece.sizes}, {gathered.offsets, gathered.sizes},
                                   gathered.itemsize);
        const format::Contents::PieceBytes bytes = piece.bytes();
        Record& record = records_.emplace_back();
        record.name = gathered.name;
        record.size = gathered.itemsize;
        for (const std::int64_t size : piece.sizes) record.size *= static_cast<std::uint64_t>(size);
        record.crc32 = bytes.crc32.value_or(0);
        record.offset = joined_.append(bytes.source, bytes.offset, record.size);
        engine::RecordRead& read = of_pieces_.emplace_back();
        read.record = &record;
        read.block_size = record.size;
        if (bytes.crc32) read.checksums = std::span(&record.crc32, 1);
        if (const auto begin = copy.one_run())
          read.into = into.subspan(*begin, record.size);
        else
          read.sink = [copy, into](std::uint64_t at, ConstBytes run) {
            copy.take(at, run, into.data());
          };
      }
    }
    void add_cut(const format::Contents::Cut& cut, MutableBytes into) {
      reads_.push_back(parts_.stream_of(cut.storage));
      reads_.back().sink = [gather = engine::Gather(cut.view, 0, cut.view.numel(), into.data())](
                               std::uint64_t at, ConstBytes bytes) { gather.take(at, bytes); };
    }

    const Parts& parts_;
    std::vector<engine::RecordRead> reads_;
    engine::JoinedSource joined_;  // the pieces
    std::vector<engine::RecordRead> of_pieces_;
    std::deque<Record> records_;  // of these
  };

  void read_pieces(const engine::JoinedSource& joined,
                   const std::vector<engine::RecordRead>& reads) const {
    read_from(
        joined, reads, [&](const engine::RecordRead& read, const engine::DamagedBlock& block) {
          const Place place = joined.place(block.offset);
          throw Error(ErrorCode::corrupt,
                      fmt::format("{}: a piece of '{}' is damaged: {} bytes at offset {} do not "
                                  "have the checksum that they were written with",
                                  place.name, read.record->name, block.size, place.offset));
        });
  }

  // As one stream: in runs that begin at multiples of kBlockSize.
  engine::RecordRead stream_of(std::size_t storage) const {
    const Record& record = contents.records.at(contents.places.at(storage));
    engine::RecordRead read = engine::read_of(contents, record, {});
    if (read.block_size % format::kBlockSize == 0 || read.checksums.empty()) return read;
    read.block_size = record.size;  // blocks of another program's choice: by the record's own
    read.checksums = std::span(&record.crc32, 1);
    return read;
  }
  engine::OnDamage refusal() const {
    return [this](const engine::RecordRead& read, const engine::DamagedBlock& block) {
      throw Error(ErrorCode::corrupt, describe(*read.record, block));
    };
  }

  std::string tensor_in(const Record& record) const {
    std::string found;
    engine::for_each_tensor(contents.value, [&](const KeyPath& path, const Tensor& tensor) {
      const std::int64_t number = tensor.storage->record;
      if (found.empty() && number >= 0 &&
          &contents.record_of(static_cast<std::size_t>(number)) == &record)
        found = format_path(path);
    });
    return found.empty() ? "no tensor of its own" : found;
  }
};

CheckpointFile::CheckpointFile(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
CheckpointFile::CheckpointFile(CheckpointFile&&) noexcept = default;
CheckpointFile& CheckpointFile::operator=(CheckpointFile&&) noexcept = default;
CheckpointFile::~CheckpointFile() = default;

CheckpointFile CheckpointFile::open(const std::filesystem::path& path, bool allow_opaque) {
  if (std::optional<engine::JoinedFile> joined = engine::open_joined(path, allow_opaque))
    return CheckpointFile(
        std::make_unique<Parts>(std::move(joined->source), std::move(joined->contents)));
  return open(open_source(path), allow_opaque);
}
CheckpointFile CheckpointFile::open(std::shared_ptr<const Source> source, bool allow_opaque) {
  format::Contents contents = format::read_contents(*source, allow_opaque);
  return CheckpointFile(std::make_unique<Parts>(std::move(source), std::move(contents)));
}

const std::string& CheckpointFile::name() const { return parts_->source->name(); }
std::uint64_t CheckpointFile::size() const {
  return parts_->contents.bytes != 0 ? parts_->contents.bytes : parts_->source->size();
}
const std::string& CheckpointFile::format() const { return parts_->contents.format; }
const Value& CheckpointFile::value() const { return parts_->contents.value; }
const std::optional<CheckpointInfo>& CheckpointFile::info() const { return parts_->contents.info; }
const std::map<std::string, std::string>& CheckpointFile::metadata() const {
  return parts_->contents.metadata;
}
bool CheckpointFile::has_checksums() const { return parts_->contents.has_checksums; }
bool CheckpointFile::has_block_checksums() const { return parts_->contents.index.has_value(); }
const std::vector<std::shared_ptr<TensorStorage>>& CheckpointFile::storages() const {
  return parts_->contents.storages;
}
const std::vector<CheckpointFile::Record>& CheckpointFile::records() const {
  return parts_->contents.records;
}

void CheckpointFile::read_through(Scratch scratch) { parts_->scratch = std::move(scratch); }

void CheckpointFile::share_cache() { parts_->shares_cache = true; }

void CheckpointFile::read(std::size_t storage, MutableBytes into) const {
  if (storage >= storages().size())
    throw Error(ErrorCode::invalid,
                fmt::format("{}: storage {} of {}", name(), storage, storages().size()));
  const Record& record = parts_->contents.record_of(storage);
  if (into.size() != record.size)
    throw Error(ErrorCode::invalid, fmt::format("{}: {} bytes to read record {} of {} bytes into",
                                                name(), into.size(), record.name, record.size));
  Parts::Reads reads(*parts_);
  reads.add(storage, into);
  reads.read();
}

void CheckpointFile::read_all(const Value& value, const Allocate& allocate) const {
  Parts::Reads reads(*parts_);
  std::vector<MutableBytes> fresh;
  for (const std::size_t i : parts_->unread(value)) {
    TensorStorage& storage = *storages()[i];
    (allocate ? allocate : Allocate(engine::allocate_owned))(storage);
    const MutableBytes into(storage.data, storage.size);
    fresh.push_back(into);
    reads.add(i, into);
  }
  // Where reading is no more than copying, ordinary pages are the better ones: mostly they were in
  // use a moment ago. On a virtual machine huge ones may have to be had back from the host, which
  // takes longer than all of the rest; reading from a disk, that hardly shows.
  if (!parts_->source->is_cached()) io::prefer_huge_pages(std::move(fresh));
  reads.read();
}

namespace {

// What is mapped, as a source: checksums are computed where the bytes lie.
class MappedSource final : public Source {
 public:
  MappedSource(const std::byte* begin, const Source& source) : begin_(begin), source_(source) {}
  std::uint64_t size() const override { return source_.size(); }
  const std::string& name() const override { return source_.name(); }
  void read(std::uint64_t offset, MutableBytes into) const override {
    std::copy_n(begin_ + offset, into.size(), into.data());
  }
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into, MutableBytes) const override {
    return {begin_ + offset, into.size()};
  }

 private:
  const std::byte* begin_;
  const Source& source_;
};

// No element is larger. PyTorch aligns records to 64 bytes; what other tools have packed anew may
// lie anywhere.
constexpr std::uint64_t kMappedAlignment = 16;

}  // namespace

void CheckpointFile::map_all(const Value& value, bool verify) const {
  const Source& source = *parts_->source;
  const std::shared_ptr<std::byte> mapping = source.map();
  if (!mapping)
    throw Error(ErrorCode::invalid,
                fmt::format("{}: only a file on this machine can be mapped", name()));
  std::vector<engine::RecordRead> reads;
  for (const std::size_t i : parts_->unread(value)) {
    const Record& record = parts_->contents.record_of(i);
    if (record.offset % kMappedAlignment != 0) continue;
    storages()[i]->data = mapping.get() + record.offset;
    storages()[i]->owner = mapping;
    if (verify) reads.push_back(engine::read_of(parts_->contents, record, {}));
  }
  parts_->read_from(MappedSource(mapping.get(), source), reads);
  read_all(value);  // the rest
}

void CheckpointFile::stream_all(const Value& value) const {
  engine::StorageStream::attach(parts_->source, parts_->contents, value, parts_->unread(value));
}

bool CheckpointFile::reads_in_place() const {
  const auto& index = parts_->contents.index;
  if (parts_->contents.reads_in_place) return true;
  return has_checksums() && index && index->block_size <= format::kBlockSize;
}

void CheckpointFile::read_in_place(const std::vector<std::size_t>& numbers) const {
  if (!reads_in_place())
    throw Error(ErrorCode::invalid,
                fmt::format("{}: has no checksums by which to read over live memory", name()));
  Parts::Reads reads(*parts_);
  for (const std::size_t number : numbers) {
    const TensorStorage& storage = *storages().at(number);
    reads.add(number, {storage.data, storage.size});
  }
  reads.compare_first();
  reads.read();
}

void CheckpointFile::stream(const std::vector<std::size_t>& numbers, const Sink& sink) const {
  std::vector<engine::RecordRead> reads;
  for (const std::size_t number : numbers) {
    reads.push_back(parts_->stream_of(number));
    reads.back().sink = [&sink, number](std::uint64_t at, ConstBytes bytes) {
      sink(number, at, bytes);
    };
  }
  parts_->read(reads);
}

namespace {

void require_multiple(const TensorStorage& small, const TensorStorage& large) {
  if (small.size == 0 ? large.size != 0 : large.size % small.size != 0)
    throw Error(ErrorCode::invalid, fmt::format("storages of {} and {} bytes to read side by side",
                                                small.size, large.size));
}

}  // namespace

void CheckpointFile::stream_pairs(const CheckpointFile& other,
                                  const std::vector<std::pair<std::size_t, std::size_t>>& pairs,
                                  const PairSink& sink) const {
  const engine::OnDamage here = parts_->refusal();
  const engine::OnDamage there = other.parts_->refusal();
  // Led by the smaller of each pair, so that a run of it belongs to whole runs of the other one.
  engine::PairedReads small{*parts_->source, {}, here};
  engine::PairedReads large{*other.parts_->source, {}, there};
  engine::PairedReads large_here = small;
  engine::PairedReads small_there = large;
  std::vector<std::size_t> led_here;
  std::vector<std::size_t> led_there;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const TensorStorage& one = *storages().at(pairs[i].first);
    const TensorStorage& two = *other.storages().at(pairs[i].second);
    const bool leads = one.size <= two.size;
    require_multiple(leads ? one : two, leads ? two : one);
    (leads ? led_here : led_there).push_back(i);
    (leads ? small : large_here).reads.push_back(parts_->stream_of(pairs[i].first));
    (leads ? large : small_there).reads.push_back(other.parts_->stream_of(pairs[i].second));
  }
  engine::bulk_read_pairs(small, large,
                          [&](std::size_t i, std::uint64_t at, ConstBytes mine, ConstBytes theirs) {
                            sink(led_here[i], at, mine, theirs);
                          });
  engine::bulk_read_pairs(small_there, large_here,
                          [&](std::size_t i, std::uint64_t at, ConstBytes theirs, ConstBytes mine) {
                            sink(led_there[i], at, mine, theirs);
                          });
}

namespace {

void require_box(const Tensor& whole, const std::vector<std::int64_t>& offsets,
                 const std::vector<std::int64_t>& sizes) {
  bool inside = offsets.size() == whole.shape.size() && sizes.size() == whole.shape.size();
  for (std::size_t d = 0; inside && d < sizes.size(); ++d)
    inside = offsets[d] >= 0 && sizes[d] >= 0 && sizes[d] <= whole.shape[d] &&
             offsets[d] <= whole.shape[d] - sizes[d];
  if (!inside)
    throw Error(
        ErrorCode::invalid,
        fmt::format("a part of {} at {} is asked for of a tensor of {}", repr(Value::size(sizes)),
                    repr(Value::size(offsets)), repr(Value::size(whole.shape))));
}

}  // namespace

Tensor CheckpointFile::part(const Tensor& whole, const std::vector<std::int64_t>& offsets,
                            const std::vector<std::int64_t>& sizes) const {
  format::Contents& contents = parts_->contents;
  require_box(whole, offsets, sizes);
  const auto number = static_cast<std::size_t>(whole.storage->record);
  if (whole.storage->record < 0 || contents.storages.at(number) != whole.storage)
    throw Error(ErrorCode::invalid, fmt::format("{}: a part of a tensor of another file", name()));
  Tensor out = format::contiguous_tensor(whole.dtype, sizes);
  CheckpointFile::Record record = contents.record_of(number);
  record.size = out.numel() * itemsize(whole.dtype);
  const std::size_t made = contents.storages.size();
  if (const auto from = contents.gathered.find(number); from != contents.gathered.end()) {
    format::Contents::Gathered gathered{
        from->second.name, itemsize(whole.dtype), offsets, sizes, {}};
    for (const format::Contents::Piece& piece : from->second.pieces)
      if (!engine::BoxCopy({piece.offsets, piece.sizes}, {offsets, sizes}, gathered.itemsize)
               .empty())
        gathered.pieces.push_back(piece);
    contents.gathered.emplace(made, std::move(gathered));
  } else {
    Tensor view = whole;
    view.shape = sizes;
    for (std::size_t d = 0; d < offsets.size(); ++d)
      view.storage_offset += offsets[d] * view.strides[d];
    contents.cuts.emplace(made, format::Contents::Cut{number, std::move(view)});
  }
  out.storage = contents.add_storage(std::move(record));
  out.storage->device = whole.storage->device;
  contents.unchecked.resize(contents.records.size(), false);
  contents.unchecked.back() = true;  // what it is made of is
  out.conj = whole.conj;
  out.neg = whole.neg;
  return out;
}

std::size_t CheckpointFile::ranks() const { return info() ? info()->ranks : 1; }

void CheckpointFile::view_as(std::size_t rank) {
  if (!info()) return;
  parts_->contents.value = engine::rank_view(value(), ranks(), rank);
}

std::optional<std::uint32_t> CheckpointFile::checksum(std::size_t storage) const {
  if (!has_checksums()) return std::nullopt;
  return parts_->contents.records.at(parts_->contents.places.at(storage)).crc32;
}

}  // namespace perdure
