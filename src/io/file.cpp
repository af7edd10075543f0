#include "io/file.hpp"

#include <fmt/format.h>

#include "io/errors.hpp"

namespace perdure::io {
namespace {

// The file may be replaced or cut while it is open: what was promised at the beginning is what is
// read, or an error.
class FileSource final : public Source {
 public:
  FileSource(File file, std::uint64_t size) : file_(std::move(file)), size_(size) {}

  std::uint64_t size() const override { return size_; }
  void read(std::uint64_t offset, MutableBytes into) const override {
    if (offset > size_ || into.size() > size_ - offset)
      throw Error(ErrorCode::io,
                  fmt::format("cannot read {} bytes at offset {} of '{}': it has {} bytes",
                              into.size(), offset, name(), size_));
    file_.read(offset, into);
  }
  const std::string& name() const override { return file_.path(); }

 private:
  File file_;
  std::uint64_t size_;
};

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

void File::reserve(std::uint64_t size) const {
  // Past this limit the kernel sends SIGXFSZ, which ends the program unless it ignores it: so never
  // get there.
  if (const std::uint64_t limit = system_->file_size_limit(); size > limit)
    throw Error(
        ErrorCode::full,
        fmt::format(
            "cannot write '{}': {} needed, but this process may not write files of more than {} "
            "(ulimit -f)",
            path_, format_bytes(size), format_bytes(limit)),
        EFBIG);
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

}  // namespace perdure::io

namespace perdure {

std::shared_ptr<Source> open_source(const std::filesystem::path& path) {
  return io::open_source(io::real_system(), AT_FDCWD, path.c_str(), 0, path.string());
}

}  // namespace perdure
