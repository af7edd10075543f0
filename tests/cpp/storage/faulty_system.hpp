// Linux, with faults: the n-th call of a kind fails, reads and writes come out short, calls are
// interrupted, and so are transfers in the background. Counts the descriptors that are open, so
// that a leak is seen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "io/system.hpp"

namespace perdure::test {

enum class Call {
  openat,
  close,
  duplicate,
  pread,
  pwrite,
  fallocate,
  ftruncate,
  fsync,
  set_direct,
  fstat,
  fchmod,
  lock,
  fstatat,
  renameat2,
  unlinkat,
  mkdirat,
  readlinkat,
  list,
  open_ring,   // these two only where transfers go through io_uring (FaultySystem::background)
  completion,  // of a transfer
};
inline constexpr Call kAllCalls[] = {
    Call::openat,    Call::close,      Call::duplicate, Call::pread,      Call::pwrite,
    Call::fallocate, Call::ftruncate,  Call::fsync,     Call::set_direct, Call::fstat,
    Call::fchmod,    Call::lock,       Call::fstatat,   Call::renameat2,  Call::unlinkat,
    Call::mkdirat,   Call::readlinkat, Call::list,      Call::open_ring,  Call::completion};

// Instead of an errno: the transfer moves about half of its bytes, and says so.
inline constexpr int kShort = 100'000;

inline std::size_t half_of(std::size_t size) {
  constexpr std::size_t kSector = 512;  // a short transfer past the page cache ends at one
  return size >= 2 * kSector ? size / 2 / kSector * kSector : (size + 1) / 2;
}

// A real one, with faults at the door: `fault` says what becomes of the next transfer.
class FaultyRing final : public io::Ring {
 public:
  FaultyRing(std::unique_ptr<io::Ring> real, std::function<int()> fault)
      : real_(std::move(real)), fault_(std::move(fault)) {}

  void read(int fd, MutableBytes into, std::uint64_t offset, std::uint64_t tag) override {
    if (passes(into, tag)) real_->read(fd, into, offset, tag);
  }
  void write(int fd, ConstBytes bytes, std::uint64_t offset, std::uint64_t tag) override {
    if (passes(bytes, tag)) real_->write(fd, bytes, offset, tag);
  }
  Completion wait() override {
    if (failed_.empty()) return real_->wait();
    const Completion completion = failed_.front();
    failed_.pop_front();
    return completion;
  }

 private:
  // What fails moves nothing.
  template <class Bytes>
  bool passes(Bytes& bytes, std::uint64_t tag) {
    const int error = -fault_();
    if (error == kShort) bytes = bytes.first(half_of(bytes.size()));
    if (error == 0 || error == kShort) return true;
    failed_.push_back({tag, -error});
    return false;
  }

  std::unique_ptr<io::Ring> real_;
  std::function<int()> fault_;
  std::deque<Completion> failed_;
};

class FaultySystem final : public io::System {
 public:
  // The n-th call of that kind from now on, counted from 1, fails with `error`. Once.
  void fail(Call call, int n, int error) {
    background = call == Call::open_ring || call == Call::completion;
    call_ = call;
    countdown_ = n;
    error_ = error;
    fired_ = false;
  }
  bool fired() const { return fired_; }
  std::size_t open_descriptors() const { return open_.size(); }
  int count(Call call) const { return counts_[static_cast<int>(call)]; }

  std::size_t transfer_limit = SIZE_MAX;  // the most that one pread or pwrite moves
  bool interrupting = false;              // every other call that may be interrupted is
  bool background = false;  // whether transfers go through io_uring, or are preads and pwrites
  std::uint64_t size_limit = UINT64_MAX;
  int no_replace_error = 0;        // what renameat2 says to a flag, as NFS does
  int lock_error = 0;              // what every lock says
  std::optional<bool> all_cached;  // what the page cache is said to have; as it is

  int openat(int directory, const char* path, int flags, mode_t mode) override {
    if (const int e = fault(Call::openat)) return e;
    return opened(real().openat(directory, path, flags, mode));
  }
  int close(int fd) override {
    {
      const std::lock_guard lock(mutex_);
      open_.erase(fd);
    }
    const int result = real().close(fd);
    const int e = fault(Call::close, false);
    return e ? e : result;
  }
  int duplicate(int fd) override {
    if (const int e = fault(Call::duplicate, false)) return e;
    return opened(real().duplicate(fd));
  }
  std::int64_t pread(int fd, MutableBytes into, std::uint64_t offset) override {
    const int e = fault(Call::pread);
    if (e == -kShort) into = into.first(half_of(into.size()));
    if (e != 0 && e != -kShort) return e;
    return real().pread(fd, into.first(std::min(into.size(), transfer_limit)), offset);
  }
  std::int64_t pwrite(int fd, ConstBytes bytes, std::uint64_t offset) override {
    const int e = fault(Call::pwrite);
    if (e == -kShort) bytes = bytes.first(half_of(bytes.size()));
    if (e != 0 && e != -kShort) return e;
    return real().pwrite(fd, bytes.first(std::min(bytes.size(), transfer_limit)), offset);
  }
  int fallocate(int fd, std::uint64_t size) override {
    if (const int e = fault(Call::fallocate)) return e;
    return real().fallocate(fd, size);
  }
  int ftruncate(int fd, std::uint64_t size) override {
    if (const int e = fault(Call::ftruncate, false)) return e;
    return real().ftruncate(fd, size);
  }
  int fsync(int fd) override {
    if (const int e = fault(Call::fsync)) return e;
    return real().fsync(fd);
  }
  int set_direct(int fd, bool direct) override {
    if (const int e = fault(Call::set_direct, false)) return e;
    return real().set_direct(fd, direct);
  }
  std::unique_ptr<io::Ring> open_ring(unsigned depth) override {
    const bool wanted = background && fault(Call::open_ring, false) == 0;
    auto ring = wanted ? io::open_uring(real(), depth) : nullptr;
    if (!ring) return io::System::open_ring(depth);
    return std::make_unique<FaultyRing>(std::move(ring),
                                        [this] { return fault(Call::completion); });
  }
  std::uint64_t cached(int fd, std::uint64_t offset, std::uint64_t size) override {
    if (all_cached) return *all_cached ? size : 0;
    return real().cached(fd, offset, size);
  }
  int map(int fd, std::uint64_t size, std::byte*& address) override {
    return real().map(fd, size, address);
  }
  void unmap(std::byte* address, std::uint64_t size) override { real().unmap(address, size); }
  int fstat(int fd, struct stat& status) override {
    if (const int e = fault(Call::fstat, false)) return e;
    return real().fstat(fd, status);
  }
  int fchmod(int fd, mode_t mode) override {
    if (const int e = fault(Call::fchmod, false)) return e;
    return real().fchmod(fd, mode);
  }
  int lock(int fd, int command, struct flock& lock) override {
    if (const int e = fault(Call::lock)) return e;
    if (lock_error != 0) return lock_error;
    return real().lock(fd, command, lock);
  }
  int fstatat(int directory, const char* name, struct stat& status, int flags) override {
    if (const int e = fault(Call::fstatat, false)) return e;
    return real().fstatat(directory, name, status, flags);
  }
  int renameat2(int from_directory, const char* from, int to_directory, const char* to,
                unsigned flags) override {
    if (const int e = fault(Call::renameat2)) return e;
    if (flags != 0 && no_replace_error != 0) return no_replace_error;
    return real().renameat2(from_directory, from, to_directory, to, flags);
  }
  int unlinkat(int directory, const char* name) override {
    if (const int e = fault(Call::unlinkat, false)) return e;
    return real().unlinkat(directory, name);
  }
  int rmdirat(int directory, const char* name) override {  // of Linux, the same call
    if (const int e = fault(Call::unlinkat, false)) return e;
    return real().rmdirat(directory, name);
  }
  int mkdirat(int directory, const char* name, mode_t mode) override {
    if (const int e = fault(Call::mkdirat, false)) return e;
    return real().mkdirat(directory, name, mode);
  }
  int readlinkat(int directory, const char* name, std::string& target) override {
    if (const int e = fault(Call::readlinkat, false)) return e;
    return real().readlinkat(directory, name, target);
  }
  int list(int directory, std::vector<std::string>& names) override {
    if (const int e = fault(Call::list, false)) return e;
    return real().list(directory, names);
  }
  int available(int fd, std::uint64_t& bytes) override { return real().available(fd, bytes); }
  std::uint64_t file_size_limit() override { return size_limit; }
  std::uint64_t random() override { return real().random(); }
  pid_t process_id() override { return real().process_id(); }

 private:
  static io::System& real() { return io::real_system(); }

  int fault(Call call, bool interruptible = true) {
    const std::lock_guard lock(mutex_);
    ++counts_[static_cast<int>(call)];
    if (call == call_ && countdown_ > 0 && --countdown_ == 0) {
      fired_ = true;
      return -error_;
    }
    return interruptible && interrupting && (flip_ = !flip_) ? -EINTR : 0;
  }
  int opened(int fd) {
    const std::lock_guard lock(mutex_);
    if (fd >= 0) open_.insert(fd);
    return fd;
  }

  std::mutex mutex_;  // files are read by several threads
  Call call_ = Call::openat;
  int countdown_ = 0;
  int error_ = 0;
  bool fired_ = false;
  bool flip_ = false;
  int counts_[std::size(kAllCalls)] = {};
  std::set<int> open_;
};

}  // namespace perdure::test
