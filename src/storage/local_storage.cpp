// The commit protocol. A file NAME in directory D is written as follows. On the right: what a
// reader of NAME finds after the machine stops between that step and the next, "old" being what
// NAME was before, or nothing.
//
//  1. open D                                        old
//  2. create .NAME.<pid>-<random>.tmp in D, O_EXCL  old; maybe debris: an empty temporary file
//  3. lock it (OFD), to show that it lives          old; debris. The lock ends with its writer
//  4. fallocate all of its size: a full disk is     old; debris, maybe full of zeros
//     known before anything is written
//  5. write it, many pieces at a time, the last one old; debris with any part of the bytes
//     padded to a whole page; cut it to its size
//  6. fsync it. After an error pages may be lost    old; debris, whole
//     and yet marked clean: the file is given up
//     and never synced again
//  7. close it, and heed what close says (NFS)      old; debris, whole
//  8. rename it to NAME: over the old file in a     old or new, each whole, for the bytes were
//     one-file save, never over one in a run        durable before. Readers see new at once
//  9. fsync D, and see that it is still there       new
// 10. only now does commit() return                 new
//
// An error in 2 to 8 removes the temporary file and leaves old. An error in 9 leaves new visible
// and whole, but a power cut may still bring old back: it is reported as a failed save.
//
// Removal of NAMES: R1. make D/.trash; R2. rename each into it under a unique name; R3. fsync D;
// R4. remove them. After a stop in R1 or R2 each one is still there or in .trash, whole; after R3
// none comes back; what is in .trash is debris. Setting aside is one rename and a fsync of D.
//
// Debris of temporary files is removed when their lock can be had, by the holder of D's lock, or,
// for its own NAME only, by the next one-file save; what is in .trash by the holder of D's lock.
#include "storage/local_storage.hpp"

#include <fmt/format.h>

#include <cstdint>

#include "io/errors.hpp"
#include "io/file_writer.hpp"
#include "storage/new_directory.hpp"
#include "storage/temporary_file.hpp"

namespace perdure::storage {
namespace {

const std::string kTrash = ".trash";
// No set-user-id and the like: they belong to the old content.
constexpr mode_t kPermissionBits = 0777;
// As the kernel's own (path_resolution(7)).
constexpr int kLinkLimit = 40;

std::string checked(std::string_view name) {
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\0", 2)) != name.npos)
    throw Error(ErrorCode::invalid, fmt::format("not a file name: '{}'", name));
  return std::string(name);
}

// What is at the name that is to be written: a regular file or nothing.
std::optional<struct stat> replaceable(const io::Directory& directory, const std::string& name) {
  const auto status = directory.status(name);
  if (!status || S_ISREG(status->st_mode) || S_ISLNK(status->st_mode)) return status;
  const std::string path = directory.path_of(name);
  if (S_ISDIR(status->st_mode))
    throw Error(ErrorCode::io,
                fmt::format("cannot save to '{}': it is a directory; give a file name in it", path),
                EISDIR);
  throw Error(ErrorCode::invalid,
              fmt::format("cannot save to '{}': it is a pipe, socket or device, and saving would "
                          "replace it by a file",
                          path));
}

class LocalReplacement final : public Replacement {
 public:
  LocalReplacement(std::shared_ptr<const io::Directory> directory, std::string name,
                   std::uint64_t size, IfExists if_exists)
      : directory_(std::move(directory)),
        name_(std::move(name)),
        size_(size),
        if_exists_(if_exists),
        old_(replaceable(*directory_, name_)),
        temporary_(directory_, name_, initial_mode()) {
    keep_permissions();
    writer_.emplace(temporary_.file(), size_);
  }

  void append(ConstBytes bytes) override { writer_->append(bytes); }
  void settle(std::uint64_t end) override { writer_->settle(end); }

  void commit() override {
    writer_->finish();
    temporary_.file().sync(size_);
    temporary_.file().close();
    publish();
    temporary_.published();
    directory_->sync();
  }

 private:
  bool keeps_permissions() const { return old_ && S_ISREG(old_->st_mode); }
  // Never more open than the file that it replaces, not even for a moment.
  mode_t initial_mode() const {
    return keeps_permissions() ? old_->st_mode & kPermissionBits : 0666;
  }
  // The umask took bits away. A file system without permission bits refuses, and has none to keep.
  void keep_permissions() {
    if (keeps_permissions())
      directory_->system().fchmod(temporary_.file().fd(), old_->st_mode & kPermissionBits);
  }
  void publish() {
    if (if_exists_ == IfExists::replace) return directory_->replace(temporary_.name(), name_);
    try {
      directory_->rename(temporary_.name(), *directory_, name_);
    } catch (const Error& error) {
      if (error.errno_value() != EEXIST) throw;
      throw Error(ErrorCode::invalid,
                  fmt::format("'{}' exists already: someone else has written it meanwhile",
                              directory_->path_of(name_)),
                  EEXIST);
    }
  }
  std::shared_ptr<const io::Directory> directory_;
  std::string name_;
  std::uint64_t size_;
  IfExists if_exists_;
  std::optional<struct stat> old_;
  TemporaryFile temporary_;
  std::optional<io::FileWriter> writer_;
};

}  // namespace

LocalStorage::LocalStorage(io::Directory directory)
    : directory_(std::make_shared<const io::Directory>(std::move(directory))) {}

std::unique_ptr<LocalStorage> LocalStorage::create_run(io::System& system,
                                                       const std::filesystem::path& path) {
  return std::unique_ptr<LocalStorage>(
      new LocalStorage(io::Directory::create(system, path.string())));
}

std::unique_ptr<LocalStorage> LocalStorage::open_folder(io::System& system,
                                                        const std::filesystem::path& path) {
  return std::unique_ptr<LocalStorage>(
      new LocalStorage(io::Directory::open(system, path.string())));
}

std::unique_ptr<LocalStorage> LocalStorage::in(io::Directory directory) {
  return std::unique_ptr<LocalStorage>(new LocalStorage(std::move(directory)));
}

std::string LocalStorage::describe(std::string_view name) const {
  return name.empty() ? directory_->path() : directory_->path_of(name);
}

std::vector<Storage::Entry> LocalStorage::list() const {
  std::vector<Entry> entries;
  for (std::string& name : directory_->names()) {
    if (name.starts_with('.')) continue;
    const auto status = directory_->status(name);  // absent: removed since
    if (status && S_ISREG(status->st_mode))
      entries.push_back({std::move(name), static_cast<std::uint64_t>(status->st_size)});
    else if (status && S_ISDIR(status->st_mode))
      entries.push_back({.name = std::move(name), .size = 0, .is_directory = true});
  }
  return entries;
}

std::shared_ptr<const Source> LocalStorage::open(std::string_view name) const {
  return io::open_source(directory_->system(), directory_->fd(), checked(name).c_str(), O_NOFOLLOW,
                         describe(name));
}

std::unique_ptr<Replacement> LocalStorage::create(std::string_view name, std::uint64_t size,
                                                  IfExists if_exists) {
  return std::make_unique<LocalReplacement>(directory_, checked(name), size, if_exists);
}

// One write at the end: Linux appends what is written to an O_APPEND file whatever the offset says
// (pwrite(2), "Bugs"), so that lines of two processes do not overwrite each other.
void LocalStorage::append_line(std::string_view name, std::string_view line) {
  io::System& system = directory_->system();
  const int fd = directory_->try_open(checked(name), O_RDWR | O_APPEND | O_CREAT, 0666);
  if (fd < 0) io::throw_error(-fd, "append to", describe(name));
  io::UniqueFd owned(system, fd);  // before anything that may throw
  io::File file(system, std::move(owned), describe(name));
  if (!directory_->is_only_name_of(checked(name), fd))
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' is no regular file, or is one that has another name elsewhere, "
                            "too: move it away",
                            describe(name)));
  auto end = static_cast<std::uint64_t>(file.status().st_size);
  std::byte last{'\n'};
  if (end > 0) file.read(end - 1, {&last, 1});
  const std::string whole = fmt::format("{}{}\n", last == std::byte{'\n'} ? "" : "\n", line);
  file.require_allowed(end + whole.size());
  for (ConstBytes left = std::as_bytes(std::span(whole)); !left.empty();) {
    const auto count = io::retry_interrupted([&] { return system.pwrite(file.fd(), left, end); });
    if (count <= 0) io::throw_error(static_cast<int>(-count), "append to", describe(name));
    left = left.subspan(static_cast<std::size_t>(count));
    end += static_cast<std::uint64_t>(count);
  }
  file.close();
}

void LocalStorage::rename(std::string_view from, std::string_view to) {
  try {
    directory_->rename(checked(from), *directory_, checked(to));
  } catch (const Error& error) {
    if (error.errno_value() == EEXIST) throw Error(ErrorCode::invalid, error.what(), EEXIST);
    throw;
  }
  directory_->sync();
}

void LocalStorage::remove(const std::vector<std::string>& names) {
  if (names.empty()) return;
  const io::Directory trash = directory_->subdirectory(kTrash);
  std::vector<std::string> hidden;
  for (const std::string& name : names) {
    if (!directory_->status(checked(name))) continue;
    hidden.push_back(fmt::format("{}.{:016x}", name, directory_->system().random()));
    directory_->rename(name, trash, hidden.back());
  }
  directory_->sync();
  for (const std::string& name : hidden)
    if (const int result = remove_whole(trash, name); result < 0 && result != -ENOENT)
      io::throw_error(-result, "remove", trash.path_of(name));
}

std::unique_ptr<NewDirectory> LocalStorage::create_directory(const std::string& name) {
  return std::make_unique<NewDirectory>(directory_, checked(name), IfExists::fail);
}

std::unique_ptr<LocalStorage> LocalStorage::open_directory(const std::string& name) const {
  if (!directory_->status(checked(name)))
    throw Error(ErrorCode::not_found,
                fmt::format("'{}': there is no such directory", describe(name)), ENOENT);
  return in(directory_->subdirectory(name));
}

void LocalStorage::lock() { lock_ = std::make_unique<DirectoryLock>(directory_); }

void LocalStorage::unlock() noexcept { lock_.reset(); }

void LocalStorage::close() noexcept {
  unlock();
  directory_.reset();
}

std::vector<std::string> LocalStorage::collect_debris() {
  std::vector<std::string> collected;
  for (const std::string& name : directory_->names()) {
    if (auto behind = name_of_temporary(name)) {
      remove_if_dead(*directory_, name);
      collected.push_back(std::move(*behind));
    } else if (auto directory = name_of_new_directory(name)) {
      remove_directory_if_dead(*directory_, name);
      collected.push_back(std::move(*directory));
    }
  }
  if (!directory_->status(kTrash)) return collected;
  const io::Directory trash = directory_->subdirectory(kTrash);
  for (const std::string& name : trash.names()) {
    remove_whole(trash, name);
    collected.push_back(name.substr(0, name.rfind('.')));
  }
  return collected;
}

void LocalStorage::collect_debris_of(std::string_view name) noexcept {
  try {
    for (const std::string& found : directory_->names())
      if (name_of_temporary(found) == temporary_stem(name)) remove_if_dead(*directory_, found);
  } catch (const std::exception&) {
    // A folder that may be written but not listed is no reason to fail a save.
  }
}

FileTarget resolve_target(io::System& system, const std::filesystem::path& path) {
  std::filesystem::path at = path;
  for (int i = 0; i < kLinkLimit; ++i) {
    const std::string name = at.filename().string();
    if (name.empty() || name == "." || name == "..")
      throw Error(
          ErrorCode::io,
          fmt::format("cannot save to '{}': it names a directory, not a file", path.string()),
          EISDIR);
    const std::filesystem::path parent = at.has_parent_path() ? at.parent_path() : ".";
    FileTarget target{LocalStorage::open_folder(system, parent), checked(name)};
    std::string link;
    const int result = system.readlinkat(AT_FDCWD, at.c_str(), link);
    if (result == -EINVAL || result == -ENOENT) return target;
    if (result < 0) io::throw_error(-result, "examine", at.string());
    at = parent / link;  // an absolute link replaces the whole
  }
  io::throw_error(ELOOP, "save to", path.string());
}

}  // namespace perdure::storage
