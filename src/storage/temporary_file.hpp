// A file on its way to a name: `.NAME.<pid>-<random>.tmp` in the directory where NAME will be.
//
// While it is written, its writer holds an OFD write lock on it. Who gets that lock knows that the
// writer is dead, and may remove the file; no pid, clock or age is trusted. (A child that was
// forked meanwhile holds the lock too: then the file is just left for a later time.)
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "io/directory.hpp"

namespace perdure::storage {

class TemporaryFile {
 public:
  // `mode` is what open(2) gets, so the umask applies.
  TemporaryFile(std::shared_ptr<const io::Directory> directory, std::string_view name, mode_t mode);
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile();  // removes the file, unless it was published or this is a forked child

  io::File& file() noexcept { return *file_; }
  const std::string& name() const noexcept { return name_; }
  void published() noexcept {
    published_ = true;
  }  // it has its final name: nothing is left to remove

 private:
  bool try_create(std::string_view name, mode_t mode);

  std::shared_ptr<const io::Directory> directory_;
  pid_t owner_;
  std::string name_;
  std::optional<io::File> file_;
  io::UniqueFd lock_;  // keeps the lock after file_ is closed, until the rename is done
  bool published_ = false;
};

// The NAME of a temporary file's name (its first 200 bytes where it is longer); nullopt for any
// other name.
std::optional<std::string> name_of_temporary(std::string_view temporary);
// Its first part, as name_of_temporary gives it back.
std::string_view temporary_stem(std::string_view name);
// Removes the temporary file if its writer is dead. False where it lives, or where that cannot be
// told.
bool remove_if_dead(const io::Directory& directory, const std::string& temporary) noexcept;

}  // namespace perdure::storage
