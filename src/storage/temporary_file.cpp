#include "storage/temporary_file.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "io/errors.hpp"

namespace perdure::storage {
namespace {

constexpr std::string_view kSuffix = ".tmp";
constexpr std::size_t kRandomDigits = 16;
// Leaves room for the dots, a pid, the random digits and the suffix in the 255 bytes of a file
// name.
constexpr std::size_t kStemLimit = 200;
// Each attempt takes a new random name; only a file system that is out of order gets past the first
// few.
constexpr int kAttempts = 16;

int try_lock(io::System& system, int fd) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return io::retry_interrupted([&] { return system.lock(fd, F_OFD_SETLK, lock); });
}

bool is_taken(int result) { return result == -EAGAIN || result == -EACCES; }

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

bool all_of(std::string_view text, std::string_view allowed) {
  return !text.empty() && text.find_first_not_of(allowed) == std::string_view::npos;
}

[[noreturn]] void throw_cannot_create(int error, const io::Directory& directory,
                                      const std::string& path) {
  if (error == ENOENT)
    throw Error(ErrorCode::not_found,
                fmt::format("cannot create '{}': the directory '{}' was removed while it was open, "
                            "and what is at that path now, if anything, is another one; open it "
                            "again to save into that",
                            path, directory.path()),
                error);
  io::throw_error(error, "create", path);
}

}  // namespace

std::string_view temporary_stem(std::string_view name) { return name.substr(0, kStemLimit); }

std::optional<std::string> name_of_temporary(std::string_view temporary) {
  if (!temporary.starts_with('.') || !temporary.ends_with(kSuffix)) return std::nullopt;
  temporary = temporary.substr(1, temporary.size() - 1 - kSuffix.size());
  const std::size_t dot = temporary.rfind('.');
  if (dot == std::string_view::npos || dot == 0) return std::nullopt;
  const std::string_view writer = temporary.substr(dot + 1);
  const std::size_t dash = writer.find('-');
  if (dash == std::string_view::npos || writer.size() - dash - 1 != kRandomDigits)
    return std::nullopt;
  if (!all_of(writer.substr(0, dash), "0123456789")) return std::nullopt;
  if (!all_of(writer.substr(dash + 1), "0123456789abcdef")) return std::nullopt;
  return std::string(temporary.substr(0, dot));
}

TemporaryFile::TemporaryFile(std::shared_ptr<const io::Directory> directory, std::string_view name,
                             mode_t mode)
    : directory_(std::move(directory)), owner_(directory_->system().process_id()) {
  for (int i = 0; i < kAttempts; ++i)
    if (try_create(name, mode)) return;
  throw Error(
      ErrorCode::io,
      fmt::format("cannot create a temporary file for '{}': {} of them were taken or removed by "
                  "someone else at once",
                  directory_->path_of(name), kAttempts));
}

// Between the creation and the lock, a collector may have found the file without its lock, and
// removed it. Then the name is gone or the lock is taken, and another name is tried. A file system
// without locks is no obstacle: there nobody can get the lock, so nobody removes anything.
bool TemporaryFile::try_create(std::string_view name, mode_t mode) {
  io::System& system = directory_->system();
  std::string candidate =
      fmt::format(".{}.{}-{:016x}{}", temporary_stem(name), owner_, system.random(), kSuffix);
  std::string path = directory_->path_of(candidate);  // before there is anything to be left behind
  const int fd = directory_->try_open(candidate, O_RDWR | O_CREAT | O_EXCL, mode);
  if (fd == -EEXIST) return false;
  if (fd < 0) throw_cannot_create(-fd, *directory_, path);
  io::File file(system, io::UniqueFd(system, fd), std::move(path));
  if (is_taken(try_lock(system, fd))) {
    system.unlinkat(directory_->fd(), candidate.c_str());
    return false;
  }
  name_ = std::move(candidate);
  file_.emplace(std::move(file));
  try {
    const auto named = directory_->status(name_);
    if (!named || !same_file(*named, file_->status())) return false;
    lock_ = io::UniqueFd(system, system.duplicate(fd));
    if (!lock_) io::throw_error(-lock_.get(), "duplicate the descriptor of", file_->path());
  } catch (...) {
    system.unlinkat(directory_->fd(), name_.c_str());
    throw;
  }
  return true;
}

TemporaryFile::~TemporaryFile() {
  io::System& system = directory_->system();
  if (published_ || system.process_id() != owner_) return;
  system.unlinkat(directory_->fd(), name_.c_str());
}

bool remove_if_dead(const io::Directory& directory, const std::string& temporary) noexcept {
  io::System& system = directory.system();
  const io::UniqueFd fd(system, directory.try_open(temporary, O_RDWR | O_NONBLOCK));
  if (!fd || try_lock(system, fd.get()) < 0) return false;
  return system.unlinkat(directory.fd(), temporary.c_str()) == 0;
}

}  // namespace perdure::storage
