// A directory that appears with all that is in it, or not at all.
//
//  1. open the parent P, make .NAME.<pid>-<random>.tmp in P, locked: it shows that the writer lives
//  2. make the directory .NAME.<pid>-<random>.tmp.d beside it, and write the files in it; each is
//     fsynced before it gets its name there, and the directory after it
//  3. rename it to NAME; where NAME is a directory already and may be replaced, the two exchange
//     their names
//  4. fsync P; then only the old one is removed, and the file of 1
//
// A stop in front of 3 leaves what NAME was, and debris; between 3 and 4 the old or the new one,
// each whole. Debris whose lock is free is removed by the next save to the same NAME.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "storage/local_storage.hpp"
#include "storage/temporary_file.hpp"

namespace perdure::storage {

class NewDirectory {
 public:
  // Error(invalid) where there is something at `path` and it may not be replaced, or is no
  // directory.
  NewDirectory(io::System& system, const std::filesystem::path& path, IfExists if_exists);
  NewDirectory(std::shared_ptr<const io::Directory> parent, std::string name, IfExists if_exists);
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;
  ~NewDirectory();  // removes every trace, unless it was committed

  // Where its files are written, also by other processes: what they put there must be durable
  // before the commit.
  LocalStorage& files() { return *files_; }
  std::string path() const { return parent_->path_of(temporary_); }
  const std::string& temporary_name() const { return temporary_; }  // in its parent
  // As Replacement::commit.
  void commit();

 private:
  void check_name(IfExists if_exists) const;
  void publish();

  std::shared_ptr<const io::Directory> parent_;
  std::string name_;
  IfExists if_exists_;
  std::optional<TemporaryFile> alive_;
  std::string temporary_;
  std::unique_ptr<LocalStorage> files_;
};

// A file, or a directory with all that is in it; no link is followed. 0, or the -errno of what
// stays.
int remove_whole(const io::Directory& parent, const std::string& name) noexcept;
// The NAME of a directory that is on its way to it; nullopt for any other name.
std::optional<std::string> name_of_new_directory(std::string_view name);
// Removes such a directory if its writer is dead.
void remove_directory_if_dead(const io::Directory& parent, const std::string& name) noexcept;

}  // namespace perdure::storage
