#include "engine/salvage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>

#include "engine/file_records.hpp"
#include "engine/patient_source.hpp"
#include "engine/remains.hpp"
#include "engine/sieve.hpp"
#include "engine/structure.hpp"
#include "format/checkpoint_json.hpp"

namespace perdure::engine {
namespace {

using Origin = Structure::Origin;
using Record = CheckpointFile::Record;

constexpr const char* kInfoRecord = ".perdure/checkpoint.json";

// A stretch of a storage that was not proven.
struct Hole {
  std::uint64_t begin = 0, end = 0;
  std::string why;
};

class Salvager {
 public:
  Salvager(std::shared_ptr<const Source> source, const std::shared_ptr<const Source>& like)
      : source_(std::make_shared<PatientSource>(std::move(source))),
        remains_(source_),
        structure_(structure_of(remains_, like)),
        holes_(structure_.decoded.storages.size()) {}

  Salvage run() {
    out_.report.path = source_->name();
    refuse_big_endian();
    read_info();
    place_storages();
    read_storages();
    sift();
    add_notes();
    return std::move(out_);
  }

 private:
  struct Placed {
    std::size_t storage = 0;
    Record record;
  };
  static std::uint64_t offset_of(const Placed& placed) { return placed.record.offset; }

  const std::vector<std::shared_ptr<TensorStorage>>& storages() const {
    return structure_.decoded.storages;
  }

  void refuse_big_endian() const {
    if (remains_.read_text("byteorder").value_or("little") != "little")
      throw Error(ErrorCode::unsupported,
                  source_->name() + ": written on a big-endian machine; perdure cannot read it");
  }

  void lose(std::size_t storage, std::string why) {
    holes_[storage] = {{0, storages()[storage]->size, std::move(why)}};
  }

  // Records do not overlap: so all of them together ask for no more memory than the file has bytes.
  void place_storages() {
    for (std::size_t i = 0; i < storages().size(); ++i) {
      Remains::Found found =
          remains_.find("data/" + structure_.decoded.keys[i], storages()[i]->size);
      if (found.record)
        placed_.push_back({i, std::move(*found.record)});
      else
        lose(i, std::move(found.why));
    }
    std::ranges::stable_sort(placed_, {}, offset_of);
    std::uint64_t end = 0;
    std::erase_if(placed_, [&](const Placed& placed) {
      const bool overlaps = placed.record.offset < end;
      if (overlaps) lose(placed.storage, "its record overlaps another one");
      end = std::max(end, placed.record.offset + placed.record.size);
      return overlaps;
    });
  }

  void read_storages() {
    std::vector<RecordRead> reads;
    for (const Placed& placed : placed_) {
      TensorStorage& storage = *storages()[placed.storage];
      allocate_owned(storage);
      reads.push_back(remains_.read_of(placed.record, {storage.data, storage.size}));
    }
    bulk_read(*source_, reads, [this](const RecordRead& read, const DamagedBlock& block) {
      add_hole(*read.record, block);
    });
    for (std::size_t i = 0; i < storages().size(); ++i) forget_holes(i);
  }
  void add_hole(const Record& record, const DamagedBlock& block) {
    auto placed = std::ranges::lower_bound(placed_, record.offset, {}, offset_of);
    while (&placed->record != &record) ++placed;
    const std::uint64_t begin = block.offset - record.offset;
    holes_[placed->storage].push_back(
        {begin, begin + block.size,
         fmt::format("{} bytes at offset {} (record {}) do not have the checksum that they were "
                     "written with",
                     block.size, block.offset, record.name)});
  }
  // Tensors around a hole keep the storage alive; what is not proven must not go along.
  void forget_holes(std::size_t number) {
    TensorStorage& storage = *storages()[number];
    for (const Hole& hole : holes_[number])
      if (storage.data) std::memset(storage.data + hole.begin, 0, hole.end - hole.begin);
    if (!storage.data) storage.size = 0;
  }

  std::string judge(const Tensor& tensor) {
    const std::int64_t number = tensor.storage->record;
    if (number < 0)
      return structure_.origin == Origin::like ? "on the meta device: only data.pkl had it" : "";
    const auto [begin, end] = tensor.byte_range();
    for (const Hole& hole : holes_[static_cast<std::size_t>(number)])
      if ((hole.begin < end && begin < hole.end) || is_unproven(tensor, hole)) return hole.why;
    if (kept_.insert(number).second) out_.report.saved.bytes += tensor.storage->size;
    return {};
  }
  // A tensor without bytes is proven by the file's own structure, or by its record.
  bool is_unproven(const Tensor& tensor, const Hole& hole) const {
    return structure_.origin == Origin::like && tensor.numel() == 0 && hole.begin == 0;
  }

  void sift() {
    Sieve sieve([this](const Tensor& tensor) { return judge(tensor); },
                structure_.origin == Origin::like);
    std::optional<Value> kept = sieve.sift(structure_.decoded.value);
    RepairReport& report = out_.report;
    report.lost = sieve.lost();
    report.saved.tensors = sieve.tensors();
    if (structure_.origin == Origin::index)
      report.lost.push_back({"state", "", {}, "all in it that is no tensor: data.pkl is damaged"});
    if (!out_.has_info && remains_.had(kInfoRecord))
      report.lost.push_back(
          {kInfoRecord, "", {}, "what the checkpoint said of itself (step, metrics, ...)"});
    if (!report.lost.empty() && sieve.tensors() + sieve.scalars() == 0)
      throw Error(ErrorCode::corrupt,
                  fmt::format("{}: nothing in it could be saved: {}: {}", source_->name(),
                              report.lost.front().path, report.lost.front().why));
    out_.state = std::move(*kept);
  }

  // A newer format is told as such.
  void read_info() {
    const auto text = remains_.read_text(kInfoRecord);
    try {
      if (text) out_.info = format::read_checkpoint_json(*text);
      out_.has_info = text.has_value();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
    }
  }

  void add_notes() {
    std::vector<std::string>& notes = out_.report.notes;
    if (!remains_.refusal().empty()) notes.push_back(remains_.refusal());
    if (!structure_.note.empty()) notes.push_back(structure_.note);
    if (const std::uint64_t bytes = source_->unreadable(); bytes > 0)
      notes.push_back(fmt::format("{}: the disk could not read {} bytes", source_->name(), bytes));
  }

  std::shared_ptr<const PatientSource> source_;
  Remains remains_;
  Structure structure_;
  std::vector<std::vector<Hole>> holes_;  // of each storage
  std::vector<Placed> placed_;            // those that are to be read, in the order of the file
  std::set<std::int64_t> kept_;           // storages that a tensor still looks into
  Salvage out_;
};

}  // namespace

Salvage salvage(std::shared_ptr<const Source> source, const std::shared_ptr<const Source>& like) {
  return Salvager(std::move(source), like).run();
}

}  // namespace perdure::engine
