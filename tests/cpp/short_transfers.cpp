// A library to preload: no read or write of a file moves more than PERDURE_SHORT_TRANSFERS bytes,
// as on network file systems and where signals come. (A kernel's short transfers past the page
// cache end at a sector, so it is best a multiple of 512.)
#include <dlfcn.h>
#include <sys/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>

namespace {

std::size_t limited(std::size_t size) {
  static const char* const text = std::getenv("PERDURE_SHORT_TRANSFERS");
  static const std::size_t limit = text ? std::strtoul(text, nullptr, 10) : 0;
  return limit == 0 ? size : std::min(size, limit);
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t pread(int fd, void* into, std::size_t size, off_t offset) {
  static const auto real = next<ssize_t(int, void*, std::size_t, off_t)>("pread");
  return real(fd, into, limited(size), offset);
}

ssize_t pread64(int fd, void* into, std::size_t size, off_t offset) {
  static const auto real = next<ssize_t(int, void*, std::size_t, off_t)>("pread64");
  return real(fd, into, limited(size), offset);
}

ssize_t pwrite(int fd, const void* bytes, std::size_t size, off_t offset) {
  static const auto real = next<ssize_t(int, const void*, std::size_t, off_t)>("pwrite");
  return real(fd, bytes, limited(size), offset);
}

ssize_t pwrite64(int fd, const void* bytes, std::size_t size, off_t offset) {
  static const auto real = next<ssize_t(int, const void*, std::size_t, off_t)>("pwrite64");
  return real(fd, bytes, limited(size), offset);
}

ssize_t read(int fd, void* into, std::size_t size) {
  static const auto real = next<ssize_t(int, void*, std::size_t)>("read");
  return real(fd, into, limited(size));
}
}
