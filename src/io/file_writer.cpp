#include "io/file_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "io/errors.hpp"

namespace perdure::io {
namespace {

// 16 MiB in flight, in requests as the benchmarks' limit (fio) makes them.
constexpr std::size_t kTransferSize = std::size_t{1} << 20;
constexpr unsigned kDepth = 16;
// A file system that says "again" for ever must not hang us.
constexpr int kMaxAttempts = 100;

bool is_aligned(std::uint64_t x) { return x % kDirectAlignment == 0; }

bool is_passing(std::int64_t result) { return result == -EINTR || result == -EAGAIN; }

}  // namespace

void FileWriter::FreeMemory::operator()(std::byte* memory) const {
  ::operator delete(memory, std::align_val_t{kDirectAlignment});
}

FileWriter::FileWriter(const File& file, std::uint64_t size)
    : file_(file), size_(size), transfers_(kDepth) {
  file_.reserve(size);
  ring_ = file_.system().open_ring(kDepth);
  direct_ = size > 0 && file_.system().set_direct(file_.fd(), true) == 0;
}

// The kernel may still read the memory of what is in flight.
FileWriter::~FileWriter() {
  for (; in_flight_ > 0; --in_flight_) ring_->wait();
}

bool FileWriter::can_go_direct(std::uint64_t offset, ConstBytes bytes) const {
  return is_aligned(offset) && is_aligned(bytes.size()) &&
         is_aligned(reinterpret_cast<std::uintptr_t>(bytes.data()));
}

void FileWriter::append(ConstBytes bytes) {
  if (bytes.size() > size_ - written_)
    throw Error(ErrorCode::invalid, fmt::format("'{}' was to have {} bytes, but {} were written",
                                                file_.path(), size_, written_ + bytes.size()));
  while (!bytes.empty()) {
    const std::size_t whole = bytes.size() - bytes.size() % kDirectAlignment;
    const std::size_t size = std::min(direct_ && whole > 0 ? whole : bytes.size(), kTransferSize);
    const ConstBytes piece = bytes.first(size);
    if (direct_ && !can_go_direct(written_, piece) && written_ + piece.size() == size_)
      append_last(piece);
    else
      append_piece(piece);
    bytes = bytes.subspan(size);
  }
}

void FileWriter::append_piece(ConstBytes bytes) {
  if (direct_ && !can_go_direct(written_, bytes)) stop_direct();
  const std::size_t slot = free_slot();
  transfers_[slot] = {.offset = written_, .bytes = bytes};
  written_ += bytes.size();
  start(slot);
}

void FileWriter::append_last(ConstBytes bytes) {
  if (!is_aligned(written_) || bytes.size() > kDirectAlignment) return append_piece(bytes);
  last_.reset(static_cast<std::byte*>(
      ::operator new(kDirectAlignment, std::align_val_t{kDirectAlignment})));
  std::memset(last_.get(), 0, kDirectAlignment);
  std::memcpy(last_.get(), bytes.data(), bytes.size());
  const std::size_t slot = free_slot();
  transfers_[slot] = {.offset = written_, .bytes = {last_.get(), kDirectAlignment}};
  written_ += bytes.size();
  start(slot);
}

void FileWriter::start(std::size_t slot) {
  transfers_[slot].direct = direct_;
  ring_->write(file_.fd(), transfers_[slot].bytes, transfers_[slot].offset, slot);
  ++in_flight_;
}

std::size_t FileWriter::free_slot() {
  for (;;) {
    const auto found = std::ranges::find_if(
        transfers_, [](const Transfer& transfer) { return transfer.bytes.empty(); });
    if (found != transfers_.end()) return static_cast<std::size_t>(found - transfers_.begin());
    complete_one();
  }
}

// Through the page cache from here on. What is in flight may finish either way.
void FileWriter::stop_direct() {
  if (const int result = file_.system().set_direct(file_.fd(), false); result < 0)
    throw_write_error(file_.system(), file_.fd(), -result, "write through the page cache to",
                      file_.path(), size_);
  direct_ = false;
}

void FileWriter::complete_one() {
  const Ring::Completion done = ring_->wait();
  --in_flight_;
  Transfer& transfer = transfers_[done.tag];
  // O_DIRECT was taken when the file was opened, but not now.
  const bool refused = transfer.direct && (done.result == -EINVAL || done.result == -EOPNOTSUPP);
  if (refused) {
    if (direct_) stop_direct();
  } else if (done.result <= 0 && !(is_passing(done.result) && ++transfer.attempts < kMaxAttempts)) {
    throw_write_error(file_.system(), file_.fd(),
                      done.result < 0 ? static_cast<int>(-done.result) : EIO,
                      fmt::format("write at offset {} of", transfer.offset), file_.path(), size_);
  } else if (done.result > 0) {
    transfer.attempts = 0;
    const auto count = static_cast<std::size_t>(done.result);
    transfer.bytes = transfer.bytes.subspan(count);
    transfer.offset += count;
    if (transfer.bytes.empty()) return;
    if (direct_ && !can_go_direct(transfer.offset, transfer.bytes)) stop_direct();
  }
  start(done.tag);
}

void FileWriter::settle(std::uint64_t end) {
  const auto unsettled = [&] {
    return std::ranges::any_of(transfers_, [&](const Transfer& transfer) {
      return !transfer.bytes.empty() && transfer.offset < end;
    });
  };
  while (unsettled()) complete_one();
}

void FileWriter::finish() {
  if (written_ != size_)
    throw Error(ErrorCode::invalid, fmt::format("'{}' was to have {} bytes, but {} were written",
                                                file_.path(), size_, written_));
  settle(UINT64_MAX);
  if (last_) file_.truncate(size_);
}

}  // namespace perdure::io
