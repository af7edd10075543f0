#include "storage/new_directory.hpp"

#include <fmt/format.h>
#include <linux/fs.h>

#include <cerrno>
#include <new>
#include <utility>

#include "io/errors.hpp"

namespace perdure::storage {
namespace {

constexpr std::string_view kEnding = ".d";

std::filesystem::path parent_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

// "a/b/" is a/b.
std::filesystem::path without_slash(const std::filesystem::path& path) {
  return path.has_filename() ? path : path.parent_path();
}

void remove_debris(const io::Directory& parent, std::string_view name) noexcept try {
  for (const std::string& found : parent.names()) {
    if (name_of_temporary(found) == temporary_stem(name)) remove_if_dead(parent, found);
    if (name_of_new_directory(found) == temporary_stem(name))
      remove_directory_if_dead(parent, found);
  }
} catch (const std::exception&) {
  // A folder that may be written but not listed is no reason to fail.
}

}  // namespace

int remove_whole(const io::Directory& parent, const std::string& name) noexcept try {
  io::System& system = parent.system();
  const int result =
      io::retry_interrupted([&] { return system.unlinkat(parent.fd(), name.c_str()); });
  if (result != -EISDIR) return result;
  {
    const io::Directory directory = parent.subdirectory(name);
    for (const std::string& file : directory.names()) remove_whole(directory, file);
  }
  return io::retry_interrupted([&] { return system.rmdirat(parent.fd(), name.c_str()); });
} catch (const Error& error) {
  return error.errno_value() == 0 ? -EIO : -error.errno_value();
} catch (const std::bad_alloc&) {
  return -ENOMEM;
}

std::optional<std::string> name_of_new_directory(std::string_view name) {
  if (!name.ends_with(kEnding)) return std::nullopt;
  return name_of_temporary(name.substr(0, name.size() - kEnding.size()));
}

void remove_directory_if_dead(const io::Directory& parent, const std::string& name) noexcept try {
  const std::string alive = name.substr(0, name.size() - kEnding.size());
  if (!parent.status(alive) || remove_if_dead(parent, alive)) remove_whole(parent, name);
} catch (const std::exception&) {
  // It stays as debris.
}

NewDirectory::NewDirectory(io::System& system, const std::filesystem::path& path,
                           IfExists if_exists)
    : NewDirectory(std::make_shared<const io::Directory>(
                       io::Directory::open(system, parent_of(without_slash(path)).string())),
                   without_slash(path).filename().string(), if_exists) {}

NewDirectory::NewDirectory(std::shared_ptr<const io::Directory> parent, std::string name,
                           IfExists if_exists)
    : parent_(std::move(parent)), name_(std::move(name)), if_exists_(if_exists) {
  if (name_.empty() || name_ == "." || name_ == "..")
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' is no name for a new directory", parent_->path_of(name_)));
  check_name(if_exists);
  remove_debris(*parent_, name_);
  alive_.emplace(parent_, name_, 0600);
  temporary_ = alive_->name() + std::string(kEnding);
  files_ = LocalStorage::in(parent_->subdirectory(temporary_));
}

void NewDirectory::check_name(IfExists if_exists) const {
  const auto status = parent_->status(name_);
  if (!status) return;
  const std::string path = parent_->path_of(name_);
  if (if_exists == IfExists::fail)
    throw Error(
        ErrorCode::invalid,
        fmt::format("'{}' exists already; choose another name, or replace it with force", path));
  if (!S_ISDIR(status->st_mode))
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' is no directory, and only one can be replaced by one", path));
}

NewDirectory::~NewDirectory() {
  files_ = nullptr;
  if (!temporary_.empty()) remove_whole(*parent_, temporary_);
}

void NewDirectory::publish() {
  if (if_exists_ == IfExists::fail || !parent_->status(name_)) {
    parent_->rename(temporary_, *parent_, name_);
    temporary_.clear();
    return;
  }
  io::System& system = parent_->system();
  const int result = io::retry_interrupted([&] {
    return system.renameat2(parent_->fd(), temporary_.c_str(), parent_->fd(), name_.c_str(),
                            RENAME_EXCHANGE);
  });
  if (result < 0)
    io::throw_error(-result, fmt::format("exchange '{}' and", parent_->path_of(temporary_)),
                    parent_->path_of(name_));
}

void NewDirectory::commit() {
  files_ = nullptr;
  publish();
  // Where the sync fails, a power cut may bring the old one back: it stays, as debris.
  const std::string old = std::exchange(temporary_, {});
  parent_->sync();
  if (!old.empty()) remove_whole(*parent_, old);
}

}  // namespace perdure::storage
