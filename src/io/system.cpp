#include "io/system.hpp"

#include <dirent.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>

namespace perdure::io {
namespace {

template <class Result>
Result or_errno(Result result) {
  return result < 0 ? static_cast<Result>(-errno) : result;
}

class RealSystem final : public System {
 public:
  int openat(int directory, const char* path, int flags, mode_t mode) override {
    return or_errno(::openat(directory, path, flags | O_CLOEXEC, mode));
  }
  int close(int fd) override { return or_errno(::close(fd)); }
  int duplicate(int fd) override { return or_errno(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }
  std::int64_t pread(int fd, MutableBytes into, std::uint64_t offset) override {
    return or_errno(::pread(fd, into.data(), into.size(), static_cast<off_t>(offset)));
  }
  std::int64_t pwrite(int fd, ConstBytes bytes, std::uint64_t offset) override {
    return or_errno(::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)));
  }
  int fallocate(int fd, std::uint64_t size) override {
    return or_errno(::fallocate(fd, 0, 0, static_cast<off_t>(size)));
  }
  int ftruncate(int fd, std::uint64_t size) override {
    return or_errno(::ftruncate(fd, static_cast<off_t>(size)));
  }
  int fsync(int fd) override { return or_errno(::fsync(fd)); }
  int set_direct(int fd, bool direct) override {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return -errno;
    return or_errno(::fcntl(fd, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT));
  }
  std::unique_ptr<Ring> open_ring(unsigned depth) override {
    auto ring = open_uring(*this, depth);
    return ring ? std::move(ring) : System::open_ring(depth);
  }
  std::uint64_t cached(int fd, std::uint64_t offset, std::uint64_t size) override;
  void will_need(int fd, std::uint64_t offset, std::uint64_t size) override {
    ::posix_fadvise(fd, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_WILLNEED);
  }
  // No swap need be there for pages that nobody will write to.
  int map(int fd, std::uint64_t size, std::byte*& address) override {
    void* const mapped =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (mapped == MAP_FAILED) return -errno;
    address = static_cast<std::byte*>(mapped);
    return 0;
  }
  void unmap(std::byte* address, std::uint64_t size) override { ::munmap(address, size); }
  int fstat(int fd, struct stat& status) override { return or_errno(::fstat(fd, &status)); }
  int fchmod(int fd, mode_t mode) override { return or_errno(::fchmod(fd, mode)); }
  int lock(int fd, int command, struct flock& lock) override {
    return or_errno(::fcntl(fd, command, &lock));
  }

  int fstatat(int directory, const char* name, struct stat& status, int flags) override {
    return or_errno(::fstatat(directory, name, &status, flags));
  }
  int renameat2(int from_directory, const char* from, int to_directory, const char* to,
                unsigned flags) override {
    if (flags == 0) return or_errno(::renameat(from_directory, from, to_directory, to));
    return static_cast<int>(
        or_errno(::syscall(SYS_renameat2, from_directory, from, to_directory, to, flags)));
  }
  int unlinkat(int directory, const char* name) override {
    return or_errno(::unlinkat(directory, name, 0));
  }
  int rmdirat(int directory, const char* name) override {
    return static_cast<int>(or_errno(::unlinkat(directory, name, AT_REMOVEDIR)));
  }
  int mkdirat(int directory, const char* name, mode_t mode) override {
    return or_errno(::mkdirat(directory, name, mode));
  }
  int readlinkat(int directory, const char* name, std::string& target) override {
    target.resize(4096);  // PATH_MAX: no link is longer
    const ssize_t length = ::readlinkat(directory, name, target.data(), target.size());
    target.resize(length < 0 ? 0 : static_cast<std::size_t>(length));
    return static_cast<int>(or_errno(length));
  }
  int list(int directory, std::vector<std::string>& names) override;

  int available(int fd, std::uint64_t& bytes) override {
    struct statvfs status = {};
    if (::fstatvfs(fd, &status) < 0) return -errno;
    bytes = static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
    return 0;
  }
  std::uint64_t file_size_limit() override {
    struct rlimit limit = {};
    if (::getrlimit(RLIMIT_FSIZE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
    return limit.rlim_cur;
  }
  std::uint64_t random() override;
  pid_t process_id() override { return ::getpid(); }
};

// A descriptor of its own, because the read position belongs to the open directory.
int RealSystem::list(int directory, std::vector<std::string>& names) {
  const int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) return fd;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(fd), ::closedir);
  if (!stream) {
    const int error = errno;
    ::close(fd);
    return -error;
  }
  errno = 0;
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  return -errno;
}

// Of a file that is neither ours nor writable for us, the kernel calls every page cached.
std::uint64_t RealSystem::cached(int fd, std::uint64_t offset, std::uint64_t size) {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = offset / page * page;
  const std::uint64_t length = offset + size - begin;
  void* const address =
      ::mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(begin));
  if (address == MAP_FAILED) return size;
  std::vector<unsigned char> resident((length + page - 1) / page);
  const int result = ::mincore(address, length, resident.data());
  ::munmap(address, length);
  if (result < 0) return size;
  const auto pages = std::ranges::count_if(resident, [](unsigned char x) { return (x & 1) != 0; });
  return std::min(static_cast<std::uint64_t>(pages) * page, size);
}

// For names that must not meet; the clock serves where a sandbox forbids getrandom.
std::uint64_t RealSystem::random() {
  std::uint64_t value = 0;
  if (::getrandom(&value, sizeof value, 0) == sizeof value) return value;
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  return static_cast<std::uint64_t>(now) * 0x9e3779b97f4a7c15ULL;
}

}  // namespace

std::unique_ptr<Ring> System::open_ring(unsigned) {
  return std::make_unique<SynchronousRing>(*this);
}

std::uint64_t System::cached(int, std::uint64_t, std::uint64_t size) { return size; }
int System::rmdirat(int, const char*) { return -ENOSYS; }
void System::will_need(int, std::uint64_t, std::uint64_t) {}
int System::map(int, std::uint64_t, std::byte*&) { return -ENODEV; }
void System::unmap(std::byte*, std::uint64_t) {}

System& real_system() {
  static RealSystem system;
  return system;
}

}  // namespace perdure::io
