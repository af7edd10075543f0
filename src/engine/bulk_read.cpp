#include "engine/bulk_read.hpp"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "engine/stream_copy.hpp"
#include "format/crc32.hpp"
#include "io/fresh_memory.hpp"

namespace perdure::engine {
namespace {

using format::kBlockSize;

// Each thread has one transfer under way. From three on, a disk is busy all the time.
constexpr unsigned kMaxThreads = 4;
// Starting a thread takes about as long as reading this much.
constexpr std::uint64_t kWorthAThread = std::uint64_t{1} << 20;
// Records that are this close are read at one go, with what lies between them.
constexpr std::uint64_t kMaxGap = std::uint64_t{16} << 10;
// What a source may add on both sides to read whole pages.
constexpr std::size_t kSlack = 2 * io::kPageSize;

// A record that is being read, and the checksums of what was read of it.
struct Job {
  RecordRead read;
  // Where a block is larger than what is read at one go: the checksums of its pieces, which are put
  // together at the end.
  std::vector<std::uint32_t> piece_sums;
  std::uint64_t pieces_in_block = 1;

  explicit Job(const RecordRead& what) : read(what) {
    if (read.checksums.empty() || read.block_size <= kBlockSize) return;
    pieces_in_block = (std::min(read.block_size, read.record->size) + kBlockSize - 1) / kBlockSize;
    piece_sums.resize(read.checksums.size() * pieces_in_block);
  }
  std::uint64_t size_of_block(std::uint64_t begin) const {
    return std::min(read.block_size, read.record->size - begin);
  }
  DamagedBlock damaged(std::uint64_t block) const {
    const std::uint64_t begin = block * read.block_size;
    return {read.record->offset + begin, size_of_block(begin)};
  }
  // Of a run of bytes in one block that begins at a multiple of kBlockSize in it. The block, where
  // it is damaged and that is known by now.
  std::optional<DamagedBlock> compare(std::uint64_t at, ConstBytes bytes) {
    if (read.checksums.empty()) return std::nullopt;
    const std::uint32_t sum = format::crc32(bytes);
    const std::uint64_t block = at / read.block_size;
    if (!piece_sums.empty())
      piece_sums[block * pieces_in_block + at % read.block_size / kBlockSize] = sum;
    else if (sum != read.checksums[block])
      return damaged(block);
    return std::nullopt;
  }
  // The others, when all of it was read.
  std::vector<DamagedBlock> damaged_whole_blocks() const {
    std::vector<DamagedBlock> found;
    if (piece_sums.empty()) return found;
    for (std::uint64_t block = 0; block < read.checksums.size(); ++block)
      if (combined_sum(block) != read.checksums[block]) found.push_back(damaged(block));
    return found;
  }

 private:
  std::uint32_t combined_sum(std::uint64_t block) const {
    std::uint64_t left = size_of_block(block * read.block_size);
    std::uint32_t sum = 0;
    for (std::uint64_t i = block * pieces_in_block; left > 0; ++i) {
      const std::uint64_t size = std::min(left, kBlockSize);
      sum = format::crc32_combine(sum, piece_sums[i], size);
      left -= size;
    }
    return sum;
  }
};

// A run of bytes of one record, all of them in one block of it.
struct Piece {
  Job* job = nullptr;
  std::uint64_t at = 0;  // in the record
  std::uint64_t size = 0;
  std::uint64_t offset() const { return job->read.record->offset + at; }
  std::uint64_t end() const { return offset() + size; }
};

// What is read at one go: a piece, or several small ones that lie close together.
struct Stretch {
  std::size_t number = 0;
  std::vector<Piece> pieces;
  std::uint64_t begin() const { return pieces.front().offset(); }
  std::uint64_t size() const { return pieces.back().end() - begin(); }
};

// Hands out the stretches of all jobs, front to back.
class Cursor {
 public:
  explicit Cursor(std::vector<Job>& jobs) : jobs_(jobs) {}

  // False where there are no more.
  bool next(Stretch& stretch) {
    stretch.number = number_++;
    stretch.pieces.clear();
    for (Piece piece = peek(); piece.size > 0 && fits(stretch, piece); piece = peek()) {
      stretch.pieces.push_back(piece);
      at_ += piece.size;
    }
    return !stretch.pieces.empty();
  }

 private:
  Piece peek() {
    while (job_ < jobs_.size() && at_ == jobs_[job_].read.record->size) {
      ++job_;
      at_ = 0;
    }
    if (job_ == jobs_.size()) return {};
    const std::uint64_t in_block = at_ % jobs_[job_].read.block_size;
    const std::uint64_t block = jobs_[job_].size_of_block(at_ - in_block);
    return {&jobs_[job_], at_, std::min(kBlockSize, block - in_block)};
  }
  static bool fits(const Stretch& stretch, const Piece& piece) {
    if (stretch.pieces.empty()) return true;
    const std::uint64_t end = stretch.pieces.back().end();
    return piece.offset() >= end && piece.offset() - end <= kMaxGap &&
           piece.end() - stretch.begin() <= kBlockSize;
  }

  std::vector<Job>& jobs_;
  std::size_t job_ = 0;
  std::uint64_t at_ = 0;
  std::size_t number_ = 0;
};

std::vector<Job> in_order_of_file(const std::vector<RecordRead>& reads) {
  std::vector<Job> jobs(reads.begin(), reads.end());
  std::ranges::stable_sort(jobs, {}, [](const Job& job) { return job.read.record->offset; });
  return jobs;
}

class BulkReader {
 public:
  BulkReader(const Source& source, const std::vector<RecordRead>& reads, const OnDamage& on_damage,
             const CheckpointFile::Scratch& scratch)
      : source_(source),
        jobs_(in_order_of_file(reads)),
        on_damage_(on_damage),
        scratch_(scratch),
        cursor_(jobs_) {
    for (const Job& job : jobs_) total_ += job.read.record->size;
  }

  void run() {
    for (const Job& job : jobs_)
      if (job.read.record->size == 0 && job.read.record->crc32 != 0)
        on_damage_(job.read, {job.read.record->offset, 0});
    {
      std::vector<std::jthread> helpers;  // joined at the end of this block
      start(helpers);
      work();
    }
    if (error_) std::rethrow_exception(error_);
    for (const Job& job : jobs_)
      for (const DamagedBlock& block : job.damaged_whole_blocks()) report(job, block);
  }

 private:
  void start(std::vector<std::jthread>& helpers) {
    static const unsigned useful = std::clamp(std::thread::hardware_concurrency(), 2U, kMaxThreads);
    const auto wanted = std::min<std::uint64_t>(total_ / kWorthAThread, useful);
    try {
      while (helpers.size() + 1 < wanted) helpers.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // No more threads to be had: those that there are do it all.
    }
  }

  void work() noexcept {
    Stretch stretch;
    std::shared_ptr<std::byte> scratch;
    try {
      while (take(stretch)) {
        try {
          if (!scratch && scratch_) scratch = scratch_(scratch_size());
          if (!scratch) scratch = io::allocate_fresh(scratch_size());
          read(stretch, {scratch.get(), scratch_size()});
        } catch (...) {
          failed(stretch.number);
        }
      }
    } catch (...) {
      failed(std::numeric_limits<std::size_t>::max());  // no memory to take one
    }
  }

  void failed(std::size_t number) {
    const std::lock_guard lock(mutex_);
    if (error_ && number >= error_number_) return;
    error_ = std::current_exception();
    error_number_ = number;
  }

  std::size_t scratch_size() const {
    return std::min(total_ + jobs_.size() * kMaxGap, kBlockSize) + kSlack;
  }

  // After an error no more are taken. Those before it are with other threads, which end them: so it
  // is always the first one in the file that is told.
  bool take(Stretch& stretch) {
    const std::lock_guard lock(mutex_);
    return !error_ && cursor_.next(stretch);
  }

  void read(const Stretch& stretch, MutableBytes scratch) {
    const Piece& first = stretch.pieces.front();
    const bool straight = stretch.pieces.size() == 1 && !first.job->read.into.empty() &&
                          !first.job->read.compare_first;
    const MutableBytes target = straight ? first.job->read.into.subspan(first.at, first.size)
                                         : scratch.first(stretch.size());
    const ConstBytes bytes = source_.read_bulk(stretch.begin(), target, scratch);
    for (const Piece& piece : stretch.pieces)
      put(piece, bytes.subspan(piece.offset() - stretch.begin(), piece.size));
  }

  void put(const Piece& piece, ConstBytes bytes) {
    const RecordRead& read = piece.job->read;
    if (const auto block = piece.job->compare(piece.at, bytes)) {
      report(*piece.job, *block);
      if (read.sink) return;
    }
    if (read.sink) return read.sink(piece.at, bytes);
    if (read.into.empty() || bytes.data() == read.into.data() + piece.at) return;
    stream_copy(read.into.data() + piece.at, bytes);
  }

  void report(const Job& job, const DamagedBlock& block) {
    const std::lock_guard lock(damage_mutex_);
    on_damage_(job.read, block);
  }

  const Source& source_;
  std::vector<Job> jobs_;
  const OnDamage& on_damage_;
  const CheckpointFile::Scratch& scratch_;
  std::uint64_t total_ = 0;

  std::mutex mutex_;  // of what follows
  Cursor cursor_;
  std::exception_ptr error_;
  std::size_t error_number_ = std::numeric_limits<std::size_t>::max();

  std::mutex damage_mutex_;  // held while on_damage_ is called
};

// The records that are read beside those of another file, a piece when it is asked for.
class Beside {
 public:
  explicit Beside(const PairedReads& what)
      : what_(what), jobs_(what.reads.begin(), what.reads.end()) {}

  // Hands on, for a run of bytes of a record's partner, the bytes of the record that belong to it:
  // `times` as many, at `times` that place.
  template <class Take>
  void read(std::size_t number, std::uint64_t at, std::uint64_t size, std::uint64_t times,
            Take&& take) {
    Job& job = jobs_[number];
    const std::uint64_t end = (at + size) * times;
    const std::shared_ptr<std::byte> scratch = borrow();
    for (std::uint64_t begin = at * times; begin < end;) {
      const std::uint64_t piece = std::min(kBlockSize, end - begin);
      const ConstBytes bytes = what_.source.read_bulk(
          job.read.record->offset + begin, {scratch.get(), piece}, {scratch.get(), kScratch});
      if (const auto block = job.compare(begin, bytes))
        report(job, *block);
      else
        take(begin / times - at, bytes);
      begin += piece;
    }
    give_back(scratch);
  }

  void finish() {
    for (const Job& job : jobs_) {
      if (job.read.record->size == 0 && job.read.record->crc32 != 0)
        report(job, {job.read.record->offset, 0});
      for (const DamagedBlock& block : job.damaged_whole_blocks()) report(job, block);
    }
  }

 private:
  static constexpr std::size_t kScratch = kBlockSize + kSlack;

  std::shared_ptr<std::byte> borrow() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        std::shared_ptr<std::byte> scratch = std::move(free_.back());
        free_.pop_back();
        return scratch;
      }
    }
    return io::allocate_fresh(kScratch);
  }
  void give_back(std::shared_ptr<std::byte> scratch) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(scratch));
  }
  void report(const Job& job, const DamagedBlock& block) {
    const std::lock_guard lock(damage_mutex_);
    what_.on_damage(job.read, block);
  }

  const PairedReads& what_;
  std::vector<Job> jobs_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<std::byte>> free_;
  std::mutex damage_mutex_;  // held while on_damage is called
};

}  // namespace

void bulk_read(const Source& source, const std::vector<RecordRead>& reads,
               const OnDamage& on_damage, const CheckpointFile::Scratch& scratch) {
  BulkReader(source, reads, on_damage, scratch).run();
}

void bulk_read_pairs(const PairedReads& one, const PairedReads& other, const PairSink& sink) {
  Beside beside(other);
  std::vector<RecordRead> reads = one.reads;
  for (std::size_t i = 0; i < reads.size(); ++i) {
    const std::uint64_t size = reads[i].record->size;
    const std::uint64_t times = size == 0 ? 1 : other.reads[i].record->size / size;
    reads[i].sink = [&beside, &sink, i, times](std::uint64_t at, ConstBytes bytes) {
      beside.read(i, at, bytes.size(), times, [&](std::uint64_t begin, ConstBytes theirs) {
        sink(i, at + begin, bytes.subspan(begin, theirs.size() / times), theirs);
      });
    };
  }
  bulk_read(one.source, reads, one.on_damage);
  beside.finish();
}

}  // namespace perdure::engine
