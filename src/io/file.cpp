#include "io/file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "io/errors.hpp"
#include "io/file_writer.hpp"

namespace perdure::io {
namespace {

// Less than this is not worth going past the page cache for.
constexpr std::size_t kWorthDirect = std::size_t{256} << 10;
// Of what is cached but for so small a part, the rest is read through the cache, too.
constexpr std::uint64_t kMissingPart = 16;

// The file may be replaced or cut while it is open: what was promised at the beginning is what is
// read, or an error.
//
// What is in the page cache is taken from there. What is not, and is much, is read past it
// (O_DIRECT): that is as fast as the disk, and costs neither a copy by the kernel nor the cache
// that others use. It is read through another opening of the same file, in whole pages.
class FileSource final : public Source {
 public:
  FileSource(File file, std::uint64_t size) : file_(std::move(file)), size_(size) {}

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return file_.path(); }
  void read(std::uint64_t offset, MutableBytes into) const override {
    require_inside(offset, into.size());
    file_.read(offset, into);
  }
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override {
    require_inside(offset, into.size());
    if (!should_copy(offset, into.size()))
      if (const ConstBytes bytes = read_direct(offset, into.size(), scratch); !bytes.empty())
        return bytes;
    file_.read(offset, into);
    return into;
  }
  bool is_cached() const override {
    return file_.system().cached(file_.fd(), 0, size_) > size_ / 2;
  }
  std::shared_ptr<std::byte> map() const override;
  void will_read(std::uint64_t offset, std::uint64_t size) const override {
    // The kernel takes no more of it than it would read ahead by itself.
    constexpr std::uint64_t kReadAhead = std::uint64_t{128} << 10;
    for (std::uint64_t at = 0; at < size; at += kReadAhead)
      file_.system().will_need(file_.fd(), offset + at, std::min(kReadAhead, size - at));
  }

 private:
  void require_inside(std::uint64_t offset, std::uint64_t size) const {
    if (offset <= size_ && size <= size_ - offset) return;
    throw Error(ErrorCode::io,
                fmt::format("cannot read {} bytes at offset {} of '{}': it has {} bytes", size,
                            offset, name(), size_));
  }
  bool should_copy(std::uint64_t offset, std::uint64_t size) const {
    if (size < kWorthDirect || refuses_direct_) return true;
    return size - file_.system().cached(file_.fd(), offset, size) <= size / kMissingPart;
  }
  ConstBytes read_direct(std::uint64_t offset, std::size_t size, MutableBytes scratch) const;
  int direct_fd() const;

  File file_;
  std::uint64_t size_;
  mutable std::once_flag opened_;
  mutable UniqueFd direct_;
  // Only saves attempts: a thread that sees it late makes one in vain.
  mutable std::atomic<bool> refuses_direct_ = false;
};

// Nothing where it cannot be had so; why, the cache will tell.
ConstBytes FileSource::read_direct(std::uint64_t offset, std::size_t size,
                                   MutableBytes scratch) const {
  const std::uint64_t begin = offset / kDirectAlignment * kDirectAlignment;
  const std::uint64_t before = offset - begin;
  const MutableBytes whole =
      scratch.first((before + size + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment);
  for (std::uint64_t done = 0; done < before + size;) {
    const int fd = direct_fd();
    if (fd < 0) return {};
    const auto count = retry_interrupted(
        [&] { return file_.system().pread(fd, whole.subspan(done), begin + done); });
    if (count == -EINVAL || count == -EOPNOTSUPP) refuses_direct_ = true;
    if (count <= 0) return {};
    done += static_cast<std::uint64_t>(count);
    if (done % kDirectAlignment != 0 && done < before + size) return {};  // cut meanwhile
  }
  return whole.subspan(before, size);
}

std::shared_ptr<std::byte> FileSource::map() const {
  const auto now = static_cast<std::uint64_t>(file_.status().st_size);
  if (now < size_)
    throw Error(
        ErrorCode::io,
        fmt::format("cannot map '{}': it had {} bytes when it was opened, and now it has {}",
                    name(), size_, now));
  std::byte* address = nullptr;
  System& system = file_.system();
  if (const int result = system.map(file_.fd(), size_, address); result < 0)
    throw_error(-result, "map", name());
  return {address, [&system, size = size_](std::byte* p) { system.unmap(p, size); }};
}

int FileSource::direct_fd() const {
  // The same file, whatever has become of its name. Read-only and regular, as the first one.
  std::call_once(opened_, [&] {
    const std::string self = fmt::format("/proc/self/fd/{}", file_.fd());
    const int fd = retry_interrupted([&] {
      return file_.system().openat(AT_FDCWD, self.c_str(), O_RDONLY | O_DIRECT | O_NOCTTY, 0);
    });
    if (fd >= 0)
      direct_ = UniqueFd(file_.system(), fd);
    else
      refuses_direct_ = true;
  });
  return direct_.get();
}

bool means_unsupported(int error) {
  return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL;
}

}  // namespace

struct stat File::status() const {
  struct stat status = {};
  if (const int result = system_->fstat(fd(), status); result < 0)
    throw_error(-result, "examine", path_);
  return status;
}

void File::read(std::uint64_t offset, MutableBytes into) const {
  while (!into.empty()) {
    const auto count = retry_interrupted([&] { return system_->pread(fd(), into, offset); });
    if (count < 0)
      throw_error(static_cast<int>(-count),
                  fmt::format("read {} bytes at offset {} of", into.size(), offset), path_);
    if (count == 0)
      throw Error(
          ErrorCode::io,
          fmt::format("cannot read {} bytes at offset {} of '{}': the file ends there; it was "
                      "longer when it was opened, so something has cut it meanwhile",
                      into.size(), offset, path_));
    into = into.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
}

void File::require_allowed(std::uint64_t size) const {
  if (const std::uint64_t limit = system_->file_size_limit(); size > limit)
    throw Error(
        ErrorCode::full,
        fmt::format(
            "cannot write '{}': {} needed, but this process may not write files of more than {} "
            "(ulimit -f)",
            path_, format_bytes(size), format_bytes(limit)),
        EFBIG);
}

void File::reserve(std::uint64_t size) const {
  require_allowed(size);
  if (size == 0) return;
  const int result = retry_interrupted([&] { return system_->fallocate(fd(), size); });
  if (result < 0 && !means_unsupported(-result))
    throw_write_error(*system_, fd(), -result, "reserve the space of", path_, size);
}

void File::truncate(std::uint64_t size) const {
  if (const int result = retry_interrupted([&] { return system_->ftruncate(fd(), size); });
      result < 0)
    throw_write_error(*system_, fd(), -result, "cut to its size", path_, size);
}

void File::sync(std::uint64_t needed) const {
  if (const int result = retry_interrupted([&] { return system_->fsync(fd()); }); result < 0)
    throw_write_error(*system_, fd(), -result, "make durable (fsync)", path_, needed);
}

void File::close() {
  if (const int result = fd_.close(); result < 0 && result != -EINTR)
    throw_error(-result, "close", path_);
}

std::shared_ptr<Source> make_source(File file) {
  const struct stat status = file.status();
  if (S_ISDIR(status.st_mode)) throw_error(EISDIR, "read", file.path());
  if (!S_ISREG(status.st_mode))
    throw Error(ErrorCode::invalid,
                fmt::format("cannot read '{}': it is not a regular file but a pipe, socket or "
                            "device; copy it into a file first",
                            file.path()));
  return std::make_shared<FileSource>(std::move(file), static_cast<std::uint64_t>(status.st_size));
}

std::shared_ptr<Source> open_source(System& system, int directory, const char* name,
                                    int extra_flags, std::string shown) {
  // O_NONBLOCK: opening a pipe without writer must not wait for one. It means nothing for regular
  // files.
  const int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | extra_flags;
  const int fd = retry_interrupted([&] { return system.openat(directory, name, flags, 0); });
  if (fd < 0) throw_error(-fd, "open", shown);
  return make_source(File(system, UniqueFd(system, fd), std::move(shown)));
}

std::shared_ptr<Source> open_beneath(System& system, int directory, std::string_view relative,
                                     std::string shown) {
  UniqueFd folder;
  for (std::size_t slash; (slash = relative.find('/')) != relative.npos;) {
    const std::string name(relative.substr(0, slash));
    const int base = folder ? folder.get() : directory;
    const int fd = retry_interrupted(
        [&] { return system.openat(base, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0); });
    if (fd < 0) throw_error(-fd, "open", shown);
    folder = UniqueFd(system, fd);
    relative.remove_prefix(slash + 1);
  }
  return open_source(system, folder ? folder.get() : directory, std::string(relative).c_str(),
                     O_NOFOLLOW, std::move(shown));
}

}  // namespace perdure::io

namespace perdure {

std::shared_ptr<Source> open_source(const std::filesystem::path& path, Links links) {
  return io::open_source(io::real_system(), AT_FDCWD, path.c_str(),
                         links == Links::refuse ? O_NOFOLLOW : 0, path.string());
}

}  // namespace perdure
