// The operating system behind one door: the calls that perdure makes, as an object that is passed
// in.
//
// So that tests can fail the n-th call, cut reads and writes short, and forget what was not synced.
// Every function does what the Linux call of its name does, and returns its result, or -errno:
// nothing here throws. Nothing is retried here either; EINTR is handled by the callers, in one
// place (retry_interrupted).
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <perdure/error.hpp>
#include <string>
#include <vector>

#include "io/ring.hpp"

namespace perdure::io {

class System {
 public:
  virtual ~System() = default;

  // `directory` may be AT_FDCWD. O_CLOEXEC is always added.
  virtual int openat(int directory, const char* path, int flags, mode_t mode) = 0;
  // As in Linux, the descriptor is gone whatever is returned.
  virtual int close(int fd) = 0;
  virtual int duplicate(int fd) = 0;
  virtual std::int64_t pread(int fd, MutableBytes into, std::uint64_t offset) = 0;
  virtual std::int64_t pwrite(int fd, ConstBytes bytes, std::uint64_t offset) = 0;
  virtual int fallocate(int fd, std::uint64_t size) = 0;  // blocks and file size, from offset 0
  virtual int ftruncate(int fd, std::uint64_t size) = 0;
  virtual int fsync(int fd) = 0;
  // Past the page cache (O_DIRECT) or through it, from now on: for every descriptor of that
  // opening.
  virtual int set_direct(int fd, bool direct) = 0;
  // For transfers in the background, `depth` at a time. Never null.
  virtual std::unique_ptr<Ring> open_ring(unsigned depth);
  // How many of these bytes are in the page cache; `size` where that cannot be told.
  virtual std::uint64_t cached(int fd, std::uint64_t offset, std::uint64_t size);
  // Lets the kernel read them into the page cache meanwhile, and none beside them.
  virtual void will_need(int fd, std::uint64_t offset, std::uint64_t size);
  // The first `size` bytes in memory, writable, and for this process alone. Not all systems can.
  virtual int map(int fd, std::uint64_t size, std::byte*& address);
  virtual void unmap(std::byte* address, std::uint64_t size);
  virtual int fstat(int fd, struct stat& status) = 0;
  virtual int fchmod(int fd, mode_t mode) = 0;
  virtual int lock(int fd, int command, struct flock& lock) = 0;  // F_SETLK, F_GETLK, F_OFD_SETLK

  virtual int fstatat(int directory, const char* name, struct stat& status, int flags) = 0;
  // `flags`: 0, which is plain renameat, RENAME_NOREPLACE or RENAME_EXCHANGE.
  virtual int renameat2(int from_directory, const char* from, int to_directory, const char* to,
                        unsigned flags) = 0;
  virtual int unlinkat(int directory, const char* name) = 0;
  virtual int rmdirat(int directory, const char* name);
  virtual int mkdirat(int directory, const char* name, mode_t mode) = 0;
  virtual int readlinkat(int directory, const char* name, std::string& target) = 0;
  virtual int list(int directory, std::vector<std::string>& names) = 0;  // without "." and ".."

  virtual int available(
      int fd, std::uint64_t& bytes) = 0;        // free bytes for this user on the file system of fd
  virtual std::uint64_t file_size_limit() = 0;  // RLIMIT_FSIZE
  virtual std::uint64_t random() = 0;
  virtual pid_t process_id() = 0;
};

// Linux itself. Shared by everyone, without state.
System& real_system();

// Calls again while a signal handler of the program's interrupts the call. Never for close.
template <class Call>
auto retry_interrupted(Call&& call) {
  auto result = call();
  while (result == -EINTR) result = call();
  return result;
}

}  // namespace perdure::io
