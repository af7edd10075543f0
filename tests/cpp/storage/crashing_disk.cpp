#include "storage/crashing_disk.hpp"

#include <linux/fs.h>

#include <algorithm>
#include <cstdint>
#include <set>

namespace perdure::test {

struct CrashingDisk::Inode {
  ino_t number = 0;
  bool directory = false;
  mode_t mode = 0;
  std::vector<std::byte> data;
  std::vector<std::byte> durable;
  std::map<std::string, Node> entries;
  std::map<std::string, Node> durable_entries;
  const OpenFile* lock = nullptr;  // OFD; record locks are all this one process's own
};

struct CrashingDisk::OpenFile {
  Node node;
  CrashingDisk* disk = nullptr;
  ~OpenFile() {
    if (node && node->lock == this) node->lock = nullptr;
  }
};

// Entries of one directory that change together; null: the name goes.
struct CrashingDisk::Change {
  Node directory;
  std::vector<std::pair<std::string, Node>> entries;
};

namespace {

template <class Entries, class Changes>
void change_entries(Entries& entries, const Changes& changes) {
  for (const auto& [name, node] : changes) {
    if (node)
      entries[name] = node;
    else
      entries.erase(name);
  }
}

}  // namespace

CrashingDisk::CrashingDisk() : root_(std::make_shared<Inode>()) {
  root_->number = 1;
  root_->directory = true;
}

CrashingDisk::~CrashingDisk() = default;

bool CrashingDisk::change() {
  if (!off_ && ++changes_ >= cut_at_) off_ = true;
  return !off_;
}

void CrashingDisk::restart(Survival survival, unsigned seed) {
  std::mt19937 coin(seed);
  const auto survives = [&](Survival kind) {
    return survival == kind || survival == Survival::everything ||
           (survival == Survival::random && coin() % 2);
  };
  std::vector<Node> reached{root_};
  for (const Change& pending : pending_)
    if (survives(Survival::names))
      change_entries(pending.directory->durable_entries, pending.entries);
  pending_.clear();
  for (std::size_t i = 0; i < reached.size(); ++i) {
    const Node node = reached[i];
    node->entries = node->durable_entries;
    node->lock = nullptr;
    if (!node->directory && !survives(Survival::data)) node->data = node->durable;
    node->durable = node->data;
    for (const auto& [name, child] : node->entries)
      if (std::find(reached.begin(), reached.end(), child) == reached.end())
        reached.push_back(child);
  }
  open_.clear();
  off_ = false;
  cut_at_ = UINT64_MAX;
}

CrashingDisk::OpenFile* CrashingDisk::file(int fd) {
  const auto found = open_.find(fd);
  return off_ || found == open_.end() ? nullptr : found->second.get();
}

std::pair<CrashingDisk::Node, std::string> CrashingDisk::walk(int directory,
                                                              const std::string& path) {
  Node at = root_;
  if (directory != AT_FDCWD && !path.starts_with('/')) {
    const OpenFile* open = file(directory);
    if (!open) return {};
    at = open->node;
  }
  std::string name = ".";
  std::size_t begin = 0;
  while ((begin = path.find_first_not_of('/', begin)) != std::string::npos) {
    if (name != ".") {
      const auto found = at->entries.find(name);
      if (found == at->entries.end()) return {};
      at = found->second;
    }
    const std::size_t end = std::min(path.find('/', begin), path.size());
    name = path.substr(begin, end - begin);
    begin = end;
  }
  return {at, name};
}

int CrashingDisk::descriptor(std::shared_ptr<OpenFile> open) {
  open_.emplace(next_fd_, std::move(open));
  return next_fd_++;
}

int CrashingDisk::create(const Node& parent, const std::string& name, Node node) {
  if (!change()) return -EIO;
  node->number = next_inode_++;
  pending_.push_back({parent, {{name, node}}});
  change_entries(parent->entries, pending_.back().entries);
  return 0;
}

int CrashingDisk::openat(int directory, const char* path, int flags, mode_t mode) {
  if (off_) return -EIO;
  const auto [parent, name] = walk(directory, path);
  if (!parent) return -ENOENT;
  auto open = std::make_shared<OpenFile>();
  const auto found = parent->entries.find(name);
  if (name == ".") {
    open->node = parent;
  } else if (found != parent->entries.end()) {
    if (flags & O_EXCL) return -EEXIST;
    open->node = found->second;
  } else {
    if (!(flags & O_CREAT)) return -ENOENT;
    auto node = std::make_shared<Inode>();
    node->mode = mode;
    if (const int result = create(parent, name, node); result < 0) return result;
    open->node = node;
  }
  if ((flags & O_DIRECTORY) && !open->node->directory) return -ENOTDIR;
  return descriptor(std::move(open));
}

int CrashingDisk::close(int fd) { return open_.erase(fd) == 1 && !off_ ? 0 : -EIO; }

int CrashingDisk::duplicate(int fd) {
  if (!file(fd)) return -EIO;
  return descriptor(open_.at(fd));
}

std::int64_t CrashingDisk::pread(int fd, MutableBytes into, std::uint64_t offset) {
  const OpenFile* open = file(fd);
  if (!open) return -EIO;
  const auto& data = open->node->data;
  if (offset >= data.size()) return 0;
  const std::size_t count = std::min<std::size_t>(into.size(), data.size() - offset);
  std::copy_n(data.begin() + static_cast<std::ptrdiff_t>(offset), count, into.begin());
  return static_cast<std::int64_t>(count);
}

std::int64_t CrashingDisk::pwrite(int fd, ConstBytes bytes, std::uint64_t offset) {
  const OpenFile* open = file(fd);
  if (!open || !change()) return -EIO;
  auto& data = open->node->data;
  data.resize(std::max<std::size_t>(data.size(), offset + bytes.size()));
  std::copy(bytes.begin(), bytes.end(), data.begin() + static_cast<std::ptrdiff_t>(offset));
  return static_cast<std::int64_t>(bytes.size());
}

int CrashingDisk::fallocate(int fd, std::uint64_t size) {
  const OpenFile* open = file(fd);
  if (!open || !change()) return -EIO;
  open->node->data.resize(std::max<std::size_t>(open->node->data.size(), size));
  return 0;
}

int CrashingDisk::ftruncate(int fd, std::uint64_t size) {
  const OpenFile* open = file(fd);
  if (!open || !change()) return -EIO;
  open->node->data.resize(size);
  return 0;
}

int CrashingDisk::fsync(int fd) {
  const OpenFile* open = file(fd);
  if (!open || !change()) return -EIO;
  if (ignores_sync) return 0;
  open->node->durable = open->node->data;
  const Node node = open->node;
  std::erase_if(pending_, [&](const Change& pending) {
    if (pending.directory != node) return false;
    change_entries(node->durable_entries, pending.entries);
    return true;
  });
  return 0;
}

int CrashingDisk::fstat(int fd, struct stat& status) {
  const OpenFile* open = file(fd);
  if (!open) return -EIO;
  status = {};
  status.st_ino = open->node->number;
  status.st_mode =
      open->node->mode | static_cast<mode_t>(open->node->directory ? S_IFDIR : S_IFREG);
  status.st_size = static_cast<off_t>(open->node->data.size());
  return 0;
}

int CrashingDisk::fchmod(int fd, mode_t mode) {
  const OpenFile* open = file(fd);
  if (!open || !change()) return -EIO;
  open->node->mode = mode;
  return 0;
}

int CrashingDisk::lock(int fd, int command, struct flock& lock) {
  const OpenFile* open = file(fd);
  if (!open) return -EIO;
  if (command == F_GETLK) lock.l_type = F_UNLCK;
  if (command != F_OFD_SETLK) return 0;
  if (open->node->lock && open->node->lock != open) return -EAGAIN;
  open->node->lock = open;
  return 0;
}

int CrashingDisk::fstatat(int directory, const char* name, struct stat& status, int flags) {
  const int fd = openat(directory, name, flags & 0, 0);
  if (fd < 0) return fd;
  const int result = fstat(fd, status);
  close(fd);
  return result;
}

int CrashingDisk::renameat2(int from_directory, const char* from, int to_directory, const char* to,
                            unsigned flags) {
  const auto [source, from_name] = walk(from_directory, from);
  const auto [target, to_name] = walk(to_directory, to);
  if (!source || !target || !source->entries.contains(from_name)) return off_ ? -EIO : -ENOENT;
  if ((flags & RENAME_NOREPLACE) && target->entries.contains(to_name)) return -EEXIST;
  if (!change()) return -EIO;
  const Node node = source->entries.at(from_name);
  if (source == target) {
    pending_.push_back({source, {{from_name, nullptr}, {to_name, node}}});
    change_entries(source->entries, pending_.back().entries);
    return 0;
  }
  pending_.push_back({target, {{to_name, node}}});
  change_entries(target->entries, pending_.back().entries);
  pending_.push_back({source, {{from_name, nullptr}}});
  change_entries(source->entries, pending_.back().entries);
  return 0;
}

int CrashingDisk::unlinkat(int directory, const char* path) {
  const auto [parent, name] = walk(directory, path);
  if (!parent || !parent->entries.contains(name)) return off_ ? -EIO : -ENOENT;
  if (!change()) return -EIO;
  pending_.push_back({parent, {{name, nullptr}}});
  change_entries(parent->entries, pending_.back().entries);
  return 0;
}

int CrashingDisk::mkdirat(int directory, const char* path, mode_t mode) {
  const auto [parent, name] = walk(directory, path);
  if (!parent) return off_ ? -EIO : -ENOENT;
  if (parent->entries.contains(name)) return -EEXIST;
  auto node = std::make_shared<Inode>();
  node->directory = true;
  node->mode = mode;
  return create(parent, name, node);
}

int CrashingDisk::readlinkat(int directory, const char* path, std::string&) {
  const auto [parent, name] = walk(directory, path);
  if (off_) return -EIO;
  return parent && (name == "." || parent->entries.contains(name)) ? -EINVAL
                                                                   : -ENOENT;  // it has no links
}

int CrashingDisk::list(int directory, std::vector<std::string>& names) {
  const OpenFile* open = file(directory);
  if (!open) return -EIO;
  for (const auto& [name, node] : open->node->entries) names.push_back(name);
  return 0;
}

int CrashingDisk::available(int, std::uint64_t& bytes) {
  bytes = UINT64_MAX;
  return 0;
}

}  // namespace perdure::test
