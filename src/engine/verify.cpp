#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>

#include "engine/dcp_parts.hpp"
#include "engine/file_records.hpp"
#include "engine/joined_file.hpp"
#include "format/torch_zip.hpp"
#include "format/unpack.hpp"

namespace perdure {
namespace {

using engine::bulk_read;
using engine::DamagedBlock;
using engine::RecordRead;
using format::Contents;

class Verifier {
 public:
  explicit Verifier(const Source& source) : source_(source) { report_.path = source.name(); }

  VerifyReport run() {
    if (format::format_of(source_) == format::Format::torch_zip)
      read_zip();
    else
      guarded("", [&] {
        plainly([&](bool opaque) { contents_ = format::read_contents(source_, opaque); });
      });
    check();
    return finish();
  }
  // Of more than one file.
  VerifyReport run(const std::filesystem::path& path, Contents contents) {
    contents_ = std::move(contents);
    check();
    if (contents_.format == engine::kDcpFormat) check_rest(engine::DcpParts(path));
    return finish();
  }

 private:
  // Damage becomes a finding; anything else (permission, a newer format) is not ours to judge and
  // goes on up.
  template <class F>
  void guarded(const std::string& record, F&& step) {
    try {
      step();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
      const auto tensor = tensors_.find(record);
      report_.findings.push_back(
          {record, tensor == tensors_.end() ? "" : tensor->second, 0, error.what()});
      known_bad_[record] = true;
    }
  }

  // Whichever part of it is damaged, the others are checked.
  void read_zip() {
    std::optional<format::ZipRecords> zip;
    guarded("", [&] { zip.emplace(source_); });
    if (!zip) return;
    contents_.has_checksums = zip->has_checksums();
    guarded(".perdure/checkpoint.json", [&] { contents_.info = zip->read_info(); });
    guarded(".perdure/index", [&] { contents_.index = zip->read_index(); });
    guarded("data.pkl", [&] { read_structure(*zip); });
    check_packed(zip->packed());
    contents_.records = std::move(*zip).take();
  }

  void read_structure(const format::ZipRecords& zip) {
    plainly([&](bool opaque) { format::read_structure(zip, opaque, contents_); });
    if (contents_.index && contents_.index->storages.size() != contents_.storages.size())
      throw Error(ErrorCode::corrupt,
                  ".perdure/index has another number of storages than data.pkl");
  }

  // What load calls damage is damage here; that it takes no more than plain data is none.
  template <class F>
  static void plainly(F&& read) {
    try {
      read(false);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::unsupported) throw;
      read(true);
    }
  }

  void check() {
    engine::for_each_tensor(contents_.value, [&](const KeyPath& path, const Tensor& tensor) {
      ++report_.tensors;
      if (tensor.storage->record < 0) return;
      add_name(contents_.record_of(static_cast<std::size_t>(tensor.storage->record)).name, path);
    });
    check_records();
  }

  void add_name(const std::string& record, const KeyPath& path) {
    constexpr std::size_t kLimit = 500;  // thousands of tensors may look into one record
    std::string& names = tensors_[record];
    if (names.size() > kLimit) return;
    names += (names.empty() ? "" : ", ") + format_path(path);
    if (names.size() > kLimit) names += ", ...";
  }

  void name_tensors_from_index() {
    if (!tensors_.empty() || !contents_.index) return;
    for (const auto& tensor : contents_.index->tensors)
      if (tensor.record >= 0) add_name(fmt::format("data/{}", tensor.record), tensor.path);
  }

  void check_records() {
    std::vector<RecordRead> reads, unchecked;
    for (std::size_t i = 0; i < contents_.records.size(); ++i) {
      const auto& record = contents_.records[i];
      report_.bytes += record.size;
      if (known_bad_.contains(record.name)) continue;
      const bool is_unchecked = i < contents_.unchecked.size() && contents_.unchecked[i];
      (is_unchecked ? unchecked : reads).push_back(engine::read_of(contents_, record, {}));
    }
    std::vector<std::pair<const CheckpointFile::Record*, DamagedBlock>> damage;
    const auto note = [&](const RecordRead& read, const DamagedBlock& block) {
      damage.emplace_back(read.record, block);
    };
    bulk_read(source_, reads, note);
    // What is put together of pieces with checksums of their own: its source compares them.
    for (const RecordRead& read : unchecked)
      guarded(read.record->name, [&] { bulk_read(source_, {read}, note); });
    std::ranges::stable_sort(damage, {}, [](const auto& found) { return found.second.offset; });
    for (const auto& [record, block] : damage) add_damage(*record, block);
  }

  void check_packed(const std::vector<format::PackedRecord>& records) {
    std::uint64_t unpacked = 0;
    for (const auto& [record, size] : records) {
      unpacked += std::min(size, format::kMaxUnpacked + 1);
      if (unpacked > format::kMaxUnpacked)
        throw Error(
            ErrorCode::unsupported,
            fmt::format("{}: its compressed records unpack to more than 1 GiB", source_.name()));
      report_.bytes += record.size;
      guarded(record.name, [&] { format::check_unpacked(source_, {record, size}); });
    }
  }

  // Of a directory of many torch.save: what stands around the values in each.
  void check_rest(engine::DcpParts parts) {
    std::set<std::pair<std::size_t, std::uint64_t>> seen;  // tied tensors are at one place
    for (const format::DcpItem& item : parts.metadata().items)
      for (const format::DcpChunk& chunk : item.chunks)
        if (seen.emplace(chunk.place.file, chunk.place.offset).second)
          guarded(item.name, [&] { report_.bytes += parts.check_rest(item, chunk.place); });
  }

  void add_damage(const CheckpointFile::Record& record, const DamagedBlock& block) {
    name_tensors_from_index();
    const Place place = source_.place(block.offset);
    const std::string file = place.name == source_.name() ? "" : fmt::format(" of {}", place.name);
    report_.findings.push_back(
        {record.name, tensors_[record.name], place.offset,
         fmt::format("{} bytes at offset {}{} do not have the checksum that they were written with",
                     block.size, place.offset, file)});
  }

  VerifyReport finish() {
    using State = VerifyReport::State;
    report_.state = !report_.findings.empty() ? State::damaged
                    : contents_.has_checksums ? State::good
                                              : State::unchecked;
    return std::move(report_);
  }

  const Source& source_;
  Contents contents_;
  std::map<std::string, bool> known_bad_;
  std::map<std::string, std::string> tensors_;  // record -> places of the tensors in it
  VerifyReport report_;
};

class CountedSource final : public Source {
 public:
  CountedSource(std::shared_ptr<const Source> source, const OnRead& on_read)
      : source_(std::move(source)), on_read_(on_read) {}
  std::uint64_t size() const override { return source_->size(); }
  const std::string& name() const override { return source_->name(); }
  Place place(std::uint64_t offset) const override { return source_->place(offset); }
  bool is_cached() const override { return source_->is_cached(); }
  void will_read(std::uint64_t offset, std::uint64_t size) const override {
    source_->will_read(offset, size);
  }
  void read(std::uint64_t offset, MutableBytes into) const override {
    source_->read(offset, into);
    on_read_(into.size());
  }
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override {
    const ConstBytes bytes = source_->read_bulk(offset, into, scratch);
    on_read_(bytes.size());
    return bytes;
  }

 private:
  std::shared_ptr<const Source> source_;
  const OnRead& on_read_;
};

std::shared_ptr<const Source> counted(std::shared_ptr<const Source> source, const OnRead& on_read) {
  if (!on_read) return source;
  return std::make_shared<CountedSource>(std::move(source), on_read);
}

}  // namespace

VerifyReport verify(std::shared_ptr<const Source> source, const OnRead& progress) {
  return Verifier(*counted(std::move(source), progress)).run();
}
VerifyReport verify(const std::filesystem::path& path, const OnRead& progress) {
  std::optional<engine::JoinedFile> joined;
  try {
    joined = engine::open_joined(path, true);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::corrupt) throw;
    return {.path = path.string(),
            .state = VerifyReport::State::damaged,
            .findings = {{"", "", 0, error.what()}}};
  }
  if (joined)
    return Verifier(*counted(std::move(joined->source), progress))
        .run(path, std::move(joined->contents));
  return verify(open_source(path), progress);
}

}  // namespace perdure
