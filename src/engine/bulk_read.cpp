#include "engine/bulk_read.hpp"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
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
    for (const Job& job : jobs_) compare_whole_blocks(job);
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
    compare(piece, bytes);
    const MutableBytes into = piece.job->read.into;
    if (into.empty() || bytes.data() == into.data() + piece.at) return;
    stream_copy(into.data() + piece.at, bytes);
  }

  void compare(const Piece& piece, ConstBytes bytes) {
    Job& job = *piece.job;
    if (job.read.checksums.empty()) return;
    const std::uint32_t sum = format::crc32(bytes);
    const std::uint64_t block = piece.at / job.read.block_size;
    if (!job.piece_sums.empty()) {
      const std::uint64_t in_block = piece.at % job.read.block_size;
      job.piece_sums[block * job.pieces_in_block + in_block / kBlockSize] = sum;
    } else if (sum != job.read.checksums[block]) {
      report(job, block);
    }
  }

  void compare_whole_blocks(const Job& job) {
    if (job.piece_sums.empty()) return;
    for (std::uint64_t block = 0; block < job.read.checksums.size(); ++block) {
      std::uint64_t left = job.size_of_block(block * job.read.block_size);
      std::uint32_t sum = 0;
      for (std::uint64_t i = block * job.pieces_in_block; left > 0; ++i) {
        const std::uint64_t size = std::min(left, kBlockSize);
        sum = format::crc32_combine(sum, job.piece_sums[i], size);
        left -= size;
      }
      if (sum != job.read.checksums[block]) report(job, block);
    }
  }

  void report(const Job& job, std::uint64_t block) {
    const std::lock_guard lock(damage_mutex_);
    const std::uint64_t begin = block * job.read.block_size;
    on_damage_(job.read, {job.read.record->offset + begin, job.size_of_block(begin)});
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

}  // namespace

void bulk_read(const Source& source, const std::vector<RecordRead>& reads,
               const OnDamage& on_damage, const CheckpointFile::Scratch& scratch) {
  BulkReader(source, reads, on_damage, scratch).run();
}

}  // namespace perdure::engine
