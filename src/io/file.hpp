// An open file: whole reads and writes, and errors that name the path.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <perdure/file.hpp>
#include <string>

#include "io/unique_fd.hpp"

namespace perdure::io {

class File {
 public:
  File(System& system, UniqueFd fd, std::string path)
      : system_(&system), fd_(std::move(fd)), path_(std::move(path)) {}

  int fd() const noexcept { return fd_.get(); }
  const std::string& path() const noexcept { return path_; }
  System& system() const noexcept { return *system_; }

  struct stat status() const;
  // Fills `into`. Error(io) where the file ends before that.
  void read(std::uint64_t offset, MutableBytes into) const;
  // Error(full) where this process may not write a file of `size` bytes (ulimit -f). Past that the
  // kernel sends SIGXFSZ, which ends the program unless it ignores it: so never get there.
  void require_allowed(std::uint64_t size) const;
  // Makes room for `size` bytes where the file system can; Error(full) where there is none.
  void reserve(std::uint64_t size) const;
  // Cuts the file to `size` bytes.
  void truncate(std::uint64_t size) const;
  // After an error the pages are marked clean and a second call would lie: give the file up.
  // `needed`, the size that the file is to have, is for Error(full)'s text.
  void sync(std::uint64_t needed) const;
  void close();  // reports what only close can know (NFS)

 private:
  System* system_;
  UniqueFd fd_;
  std::string path_;
};

// `fd` as a Source. Error(io) for a directory, Error(invalid) for anything else that is not a
// regular file.
std::shared_ptr<Source> make_source(File file);
// As perdure::open_source, through `system`; relative to `directory`, and without following a link
// where `extra_flags` says so. `shown` is the path for messages.
std::shared_ptr<Source> open_source(System& system, int directory, const char* name,
                                    int extra_flags, std::string shown);

// The file at `relative`, names with slashes between them, in `directory` or below. No link is
// followed, and nothing is opened that is not a regular file.
std::shared_ptr<Source> open_beneath(System& system, int directory, std::string_view relative,
                                     std::string shown);

}  // namespace perdure::io
