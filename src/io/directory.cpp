#include "io/directory.hpp"

#include <fmt/format.h>
#include <linux/fs.h>

#include <filesystem>

#include "io/errors.hpp"

namespace perdure::io {
namespace {

int open_directory(System& system, int base, const std::string& path) {
  return retry_interrupted(
      [&] { return system.openat(base, path.c_str(), O_RDONLY | O_DIRECTORY, 0); });
}

// The names of `path` as two: what it is in, and its own. "runs/gpt/" is "runs" and "gpt"; "gpt" is
// "." and "gpt".
std::pair<std::string, std::string> split(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return {"/", "."};
  const std::size_t slash = path.find_last_of('/', end);
  if (slash == std::string::npos) return {".", path.substr(0, end + 1)};
  const std::size_t parent_end = path.find_last_not_of('/', slash);
  std::string parent = parent_end == std::string::npos ? "/" : path.substr(0, parent_end + 1);
  return {std::move(parent), path.substr(slash + 1, end - slash)};
}

// Makes the entry of an old directory durable. Who may not read its parent (/home, often) has to
// trust it.
void sync_entry_of(System& system, const std::string& path) {
  const std::string parent = split(path).first;
  const UniqueFd fd(system, open_directory(system, AT_FDCWD, parent));
  if (!fd) return;
  const int result = retry_interrupted([&] { return system.fsync(fd.get()); });
  if (result < 0 && result != -EINVAL && result != -EROFS)
    throw_error(-result, "make durable (fsync)", parent);
}

}  // namespace

Directory Directory::open(System& system, const std::string& path) {
  const int fd = open_directory(system, AT_FDCWD, path);
  if (fd == -ENOTDIR)
    throw Error(ErrorCode::io,
                fmt::format("'{}' is not a directory, or one of its parents is not", path),
                ENOTDIR);
  if (fd == -ENOENT)
    throw Error(ErrorCode::not_found,
                fmt::format("the directory '{}' does not exist; create it first", path), ENOENT);
  if (fd < 0) throw_error(-fd, "open the directory", path);
  UniqueFd owned(system, fd);  // before anything that may throw
  return Directory(system, std::move(owned), path);
}

Directory Directory::create(System& system, const std::string& path) {
  if (path.empty()) throw Error(ErrorCode::invalid, "the path of a directory is empty");
  struct stat status = {};
  const int found =
      retry_interrupted([&] { return system.fstatat(AT_FDCWD, path.c_str(), status, 0); });
  if (found < 0 && found != -ENOENT && found != -ENOTDIR) throw_error(-found, "examine", path);
  if (found != -ENOENT) {
    Directory directory = open(system, path);
    sync_entry_of(system, path);
    return directory;
  }
  const auto [parent_path, name] = split(path);
  const Directory parent = create(system, parent_path);
  if (const int made = system.mkdirat(parent.fd(), name.c_str(), 0777); made < 0 && made != -EEXIST)
    throw_error(-made, "create the directory", path);
  parent.sync();
  return open(system, path);
}

std::string Directory::path_of(std::string_view name) const {
  return (std::filesystem::path(path_) / name).string();
}

struct stat Directory::status() const {
  struct stat status = {};
  if (const int result = system_->fstat(fd(), status); result < 0)
    throw_error(-result, "examine", path_);
  return status;
}

std::optional<struct stat> Directory::status(const std::string& name) const {
  struct stat status = {};
  const int result = retry_interrupted(
      [&] { return system_->fstatat(fd(), name.c_str(), status, AT_SYMLINK_NOFOLLOW); });
  if (result == -ENOENT) return std::nullopt;
  if (result < 0) throw_error(-result, "examine", path_of(name));
  return status;
}

bool Directory::is_only_name_of(const std::string& name, int fd) const {
  struct stat opened = {};
  if (const int result = system_->fstat(fd, opened); result < 0)
    throw_error(-result, "examine", path_of(name));
  const auto named = status(name);
  return named && named->st_dev == opened.st_dev && named->st_ino == opened.st_ino &&
         S_ISREG(named->st_mode) && named->st_nlink <= 1;
}

std::vector<std::string> Directory::names() const {
  std::vector<std::string> names;
  if (const int result = system_->list(fd(), names); result < 0)
    throw_error(-result, "list the directory", path_);
  return names;
}

int Directory::try_open(const std::string& name, int flags, mode_t mode) const {
  return retry_interrupted(
      [&] { return system_->openat(fd(), name.c_str(), flags | O_NOFOLLOW, mode); });
}

Directory Directory::subdirectory(const std::string& name) const {
  const std::string path = path_of(name);
  if (const int made = system_->mkdirat(fd(), name.c_str(), 0777); made < 0 && made != -EEXIST)
    throw_error(-made, "create the directory", path);
  const int sub = try_open(name, O_RDONLY | O_DIRECTORY);
  if (sub < 0) throw_error(-sub, "open the directory", path);
  UniqueFd owned(*system_, sub);  // before anything that may throw
  return Directory(*system_, std::move(owned), path);
}

int Directory::try_rename(const std::string& from, const Directory& to_directory,
                          const std::string& to, unsigned flags) const {
  return retry_interrupted(
      [&] { return system_->renameat2(fd(), from.c_str(), to_directory.fd(), to.c_str(), flags); });
}

void Directory::rename(const std::string& from, const Directory& to_directory,
                       const std::string& to) const {
  int result = try_rename(from, to_directory, to, RENAME_NOREPLACE);
  if (result == -EINVAL || result == -ENOSYS) {
    // NFS and some FUSE file systems know no flags. Between the look and the rename another may
    // come: all who write here hold the directory's lock, so this is as good as it gets there.
    result = to_directory.status(to) ? -EEXIST : try_rename(from, to_directory, to, 0);
  }
  if (result < 0)
    throw_error(-result, fmt::format("rename '{}' to", path_of(from)), to_directory.path_of(to));
}

void Directory::replace(const std::string& from, const std::string& to) const {
  const int result = try_rename(from, *this, to, 0);
  if (result < 0) throw_error(-result, fmt::format("rename '{}' to", path_of(from)), path_of(to));
}

// EINVAL: the file system has no such thing as syncing a directory, and nothing better either. XFS
// that has shut itself down has dropped what was to be synced, and says that all went well
// (xfs_dir_fsync in Linux 6.18 does not look); but it refuses to tell of the directory.
void Directory::sync() const {
  const auto require = [&](int result) {
    if (result < 0 && result != -EINVAL)
      throw_error(-result, "make durable (fsync) the directory", path_);
  };
  require(retry_interrupted([&] { return system_->fsync(fd()); }));
  struct stat status = {};
  require(system_->fstat(fd(), status));
}

}  // namespace perdure::io
