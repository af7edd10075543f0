// An open directory: every name is relative to it, so that it stays the same one whatever its path
// becomes.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.hpp"

namespace perdure::io {

class Directory {
 public:
  // Error(not_found) where there is none, Error(io) where it is something else.
  static Directory open(System& system, const std::string& path);
  // Opens it; makes it and its missing parents first. Each new name is made durable before the next
  // is made, and so is the last one that was there: an earlier process may have been killed between
  // making and syncing it.
  static Directory create(System& system, const std::string& path);

  System& system() const noexcept { return *system_; }
  int fd() const noexcept { return fd_.get(); }
  const std::string& path() const noexcept { return path_; }
  std::string path_of(std::string_view name) const;

  struct stat status() const;  // of the directory itself
  std::optional<struct stat> status(
      const std::string& name) const;      // links not followed; nullopt: absent
  std::vector<std::string> names() const;  // "." and ".." left out, no order

  // Whether `fd` is a regular file whose only name is `name`, here: what is written to it is
  // written nowhere else. Both are asked at once, for a hard link may come and go. Some systems
  // count no names.
  bool is_only_name_of(const std::string& name, int fd) const;

  // openat with O_NOFOLLOW. -errno where it fails.
  int try_open(const std::string& name, int flags, mode_t mode = 0) const;
  Directory subdirectory(const std::string& name) const;  // made where it is not there; not synced
  // Where `to` exists: rename fails with Error(io), EEXIST; replace puts `from` in its place.
  void rename(const std::string& from, const Directory& to_directory, const std::string& to) const;
  void replace(const std::string& from, const std::string& to) const;
  void sync() const;

 private:
  Directory(System& system, UniqueFd fd, std::string path)
      : system_(&system), fd_(std::move(fd)), path_(std::move(path)) {}
  int try_rename(const std::string& from, const Directory& to_directory, const std::string& to,
                 unsigned flags) const;

  System* system_;
  UniqueFd fd_;
  std::string path_;
};

}  // namespace perdure::io
