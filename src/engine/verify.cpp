#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>

#include "engine/file_records.hpp"
#include "format/decoder.hpp"

namespace perdure {
namespace {

using engine::bulk_read;
using engine::DamagedBlock;
using engine::FileRecords;
using engine::RecordRead;

class Verifier {
 public:
  explicit Verifier(std::shared_ptr<const Source> source) : source_(std::move(source)) {
    report_.path = source_->name();
  }

  VerifyReport run() {
    guarded("", [&] { records_.emplace(source_); });
    if (!records_) return finish();
    guarded(".perdure/checkpoint.json", [&] { records_->read_info(); });
    guarded(".perdure/index", [&] { index_ = records_->read_index(); });
    guarded("data.pkl", [&] { read_structure(); });
    check_records();
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
      report_.findings.push_back({record, "", 0, error.what()});
      known_bad_[record] = true;
    }
  }

  void read_structure() {
    const std::string pickle = records_->read_required("data.pkl");
    const auto size = [&](std::string_view key) -> std::optional<std::uint64_t> {
      const auto* record = records_->find(fmt::format("data/{}", key));
      return record == nullptr ? std::nullopt : std::optional(record->size);
    };
    const format::Decoded decoded =
        engine::with_file_name(*source_, [&] { return decode(format::read_pickle(pickle), size); });
    engine::for_each_tensor(decoded.value, [&](const KeyPath& path, const Tensor& tensor) {
      ++report_.tensors;
      if (tensor.storage->record < 0) return;
      add_name("data/" + decoded.keys[static_cast<std::size_t>(tensor.storage->record)], path);
    });
    if (index_ && index_->storages.size() != decoded.storages.size())
      throw Error(ErrorCode::corrupt,
                  ".perdure/index has another number of storages than data.pkl");
  }

  // What load calls damage is damage here; that it takes no more than plain data is none.
  static format::Decoded decode(const format::Pickle& pickle, const format::RecordSize& size) {
    try {
      return format::decode(pickle, size, false);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::unsupported) throw;
      return format::decode(pickle, size, true);
    }
  }

  void add_name(const std::string& record, const KeyPath& path) {
    constexpr std::size_t kLimit = 500;  // thousands of tensors may look into one record
    std::string& names = tensors_[record];
    if (names.size() > kLimit) return;
    names += (names.empty() ? "" : ", ") + format_path(path);
    if (names.size() > kLimit) names += ", ...";
  }

  void name_tensors_from_index() {
    if (!tensors_.empty() || !index_) return;
    for (const auto& tensor : index_->tensors)
      if (tensor.record >= 0) add_name(fmt::format("data/{}", tensor.record), tensor.path);
  }

  void check_records() {
    std::vector<RecordRead> reads;
    for (const auto& record : records_->records()) {
      report_.bytes += record.size;
      if (!known_bad_.contains(record.name)) reads.push_back(records_->read_of(record, index_, {}));
    }
    std::vector<std::pair<const CheckpointFile::Record*, DamagedBlock>> damage;
    bulk_read(*source_, reads, [&](const RecordRead& read, const DamagedBlock& block) {
      damage.emplace_back(read.record, block);
    });
    std::ranges::stable_sort(damage, {}, [](const auto& found) { return found.second.offset; });
    for (const auto& [record, block] : damage) add_damage(*record, block);
  }

  void add_damage(const CheckpointFile::Record& record, const DamagedBlock& block) {
    name_tensors_from_index();
    report_.findings.push_back(
        {record.name, tensors_[record.name], block.offset,
         fmt::format("{} bytes at offset {} do not have the checksum that they were written with",
                     block.size, block.offset)});
  }

  VerifyReport finish() {
    using State = VerifyReport::State;
    report_.state = !report_.findings.empty()   ? State::damaged
                    : records_->has_checksums() ? State::good
                                                : State::unchecked;
    return std::move(report_);
  }

  std::shared_ptr<const Source> source_;
  std::optional<FileRecords> records_;
  std::optional<format::BlockIndex> index_;
  std::map<std::string, bool> known_bad_;
  std::map<std::string, std::string> tensors_;  // record -> places of the tensors in it
  VerifyReport report_;
};

}  // namespace

VerifyReport verify(std::shared_ptr<const Source> source) {
  return Verifier(std::move(source)).run();
}
VerifyReport verify(const std::filesystem::path& path) { return verify(open_source(path)); }

}  // namespace perdure
