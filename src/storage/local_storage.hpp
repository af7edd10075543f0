// Storage in a directory of the local machine, or of anything that is mounted like one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "io/directory.hpp"
#include "storage/directory_lock.hpp"
#include "storage/storage.hpp"

namespace perdure::storage {

class NewDirectory;

class LocalStorage final : public Storage {
 public:
  // The directory of a run: made where it is not there, with its parents, durably.
  static std::unique_ptr<LocalStorage> create_run(io::System& system,
                                                  const std::filesystem::path& path);
  // A folder that must be there: for single files, and for looking at a run without changing
  // anything.
  static std::unique_ptr<LocalStorage> open_folder(io::System& system,
                                                   const std::filesystem::path& path);

  // A directory that is open already.
  static std::unique_ptr<LocalStorage> in(io::Directory directory);

  std::string describe(std::string_view name) const override;
  std::vector<Entry> list() const override;
  std::shared_ptr<const Source> open(std::string_view name) const override;
  std::unique_ptr<Replacement> create(std::string_view name, std::uint64_t size,
                                      IfExists if_exists) override;
  void append_line(std::string_view name, std::string_view line) override;
  void rename(std::string_view from, std::string_view to) override;
  void remove(const std::vector<std::string>& names) override;
  void lock() override;
  void unlock() noexcept override;
  void close() noexcept override;  // a file system with an open directory cannot be unmounted
  std::vector<std::string> collect_debris() override;

  // A directory that appears under `name` with all that is in it; Error(invalid) where there is
  // something of that name. Files are written into it by several processes: each opens it under
  // the name that it has meanwhile.
  std::unique_ptr<NewDirectory> create_directory(const std::string& name);
  // A directory in this one that is there.
  std::unique_ptr<LocalStorage> open_directory(const std::string& name) const;

  // What dead writers of this one name left. Needs no lock; a live writer's file is left alone.
  void collect_debris_of(std::string_view name) noexcept;

 private:
  explicit LocalStorage(io::Directory directory);

  std::shared_ptr<const io::Directory> directory_;
  std::unique_ptr<DirectoryLock> lock_;
};

// Where a save to `path` goes: the folder and the name in it. A symbolic link is followed to its
// end, also to a file that is not there yet, as open(2) would: the link stays, and what it points
// to is replaced. Error(io, EISDIR) for a directory, Error(invalid) for a device, pipe or socket,
// Error(not_found) without parent.
struct FileTarget {
  std::unique_ptr<LocalStorage> folder;
  std::string name;
};
FileTarget resolve_target(io::System& system, const std::filesystem::path& path);

}  // namespace perdure::storage
