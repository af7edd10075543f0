#include "storage/directory_lock.hpp"

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <tuple>

#include "io/errors.hpp"

namespace perdure::storage {
namespace {

const std::string kLockName = ".lock";

// The directories that this process has locked, by identity, with the pid that did it: a forked
// child inherits the table, but not the locks.
struct Registry {
  using Key = std::tuple<io::System*, dev_t, ino_t>;
  std::mutex mutex;
  std::map<Key, pid_t> held;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

Registry::Key key_of(io::System& system, const struct stat& directory) {
  return {&system, directory.st_dev, directory.st_ino};
}

struct flock whole_file() {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

[[noreturn]] void throw_locked(const io::Directory& directory, const std::string& holder) {
  throw Error(ErrorCode::locked,
              fmt::format("the run directory '{}' is in use by {}; one manager at a time may write "
                          "to it: close that one, or wait for it to end",
                          directory.path(), holder));
}

// l_pid is of no use where the holder is in another pid namespace (0) or on another machine (NFS).
std::string holder_of(const io::Directory& directory, int fd) {
  struct flock lock = whole_file();
  if (directory.system().lock(fd, F_GETLK, lock) == 0 && lock.l_type != F_UNLCK && lock.l_pid > 0)
    return fmt::format("process {}", lock.l_pid);
  return "another process";
}

bool has_no_locks(int result) {
  return result == -ENOSYS || result == -EOPNOTSUPP || result == -EINVAL;
}

// For people who look into the directory. Nothing reads it, so nothing depends on its success.
// Under a second name, a hard link, it may be something that others need.
void write_pid(const io::Directory& directory, int fd, pid_t pid) noexcept {
  try {
    if (!directory.is_only_name_of(kLockName, fd)) return;
    const std::string text = fmt::format("{}\n", pid);
    io::System& system = directory.system();
    if (system.ftruncate(fd, 0) == 0) system.pwrite(fd, std::as_bytes(std::span(text)), 0);
  } catch (const std::exception&) {
    // Then it is not written.
  }
}

}  // namespace

DirectoryLock::DirectoryLock(std::shared_ptr<const io::Directory> directory)
    : directory_(std::move(directory)), identity_(directory_->status()) {
  const pid_t self = directory_->system().process_id();
  const std::lock_guard guard(registry().mutex);
  const auto key = key_of(directory_->system(), identity_);
  const auto found = registry().held.find(key);
  if (found != registry().held.end() && found->second == self)
    throw_locked(*directory_, fmt::format("another CheckpointManager of this process ({})", self));
  take(self);
  registry().held[key] = self;
}

void DirectoryLock::take(pid_t self) {
  io::System& system = directory_->system();
  const int fd = directory_->try_open(kLockName, O_RDWR | O_CREAT, 0666);
  if (fd < 0) io::throw_error(-fd, "open", directory_->path_of(kLockName));
  io::UniqueFd file(system, fd);
  struct flock lock = whole_file();
  const int result = io::retry_interrupted([&] { return system.lock(fd, F_SETLK, lock); });
  if (result == -EAGAIN || result == -EACCES) throw_locked(*directory_, holder_of(*directory_, fd));
  if (result < 0 && !has_no_locks(result))
    io::throw_error(-result, "lock", directory_->path_of(kLockName));
  write_pid(*directory_, fd, self);
  file_ = std::move(file);
}

DirectoryLock::~DirectoryLock() {
  const std::lock_guard guard(registry().mutex);
  registry().held.erase(key_of(directory_->system(), identity_));
  file_.close();
}

}  // namespace perdure::storage
