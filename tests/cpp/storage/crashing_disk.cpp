#include "storage/crashing_disk.hpp"

#include <linux/fs.h>

#include <algorithm>
#include <cstdint>
#include <random>

namespace perdure::test {

using Inode = DiskState::Inode;

namespace {

constexpr std::uint64_t kSector = 512;
constexpr ino_t kRoot = 1;
// Answers to "does this write survive?": no, yes, and the ways of being torn.
constexpr unsigned kLost = 0, kWhole = 1, kAnswersForOneSector = 2, kAnswersForMore = 6;
// Answers to "does the new size survive?": no; yes, with zeros; yes, with anything.
constexpr unsigned kOldSize = 0, kAnything = 2, kAnswersForShrunk = 2, kAnswersForGrown = 3;

using Names = std::map<std::string, ino_t> Inode::*;  // those that are seen, or durable

void change_entries(DiskState& state, Names names, const DiskState::Change& change) {
  for (const auto& [directory, name, node] : change) {
    auto& entries = state.inodes.at(directory).*names;
    if (node != 0)
      entries[name] = node;
    else
      entries.erase(name);
  }
}

std::uint64_t sectors_of(const DiskState::Write& write) {
  return (write.offset + write.bytes.size() - 1) / kSector - write.offset / kSector + 1;
}

// The sectors of a torn write that survive are a function of the answer, so that a list of answers
// repeats a case: the first ones, the last ones, or a choice.
bool survives(unsigned answer, std::uint64_t sector, std::uint64_t sectors) {
  if (answer <= kWhole) return answer == kWhole;
  if (answer == 2) return sector < (sectors + 1) / 2;
  if (answer == 3) return sector >= sectors / 2;
  std::mt19937 coin(static_cast<unsigned>(answer * 7919 + sector));
  return coin() % 2 == 0;
}

void write_part(std::vector<std::byte>& data, const DiskState::Write& write, unsigned answer) {
  const std::uint64_t sectors = write.bytes.empty() ? 0 : sectors_of(write);
  for (std::uint64_t i = 0; i < write.bytes.size(); ++i) {
    const std::uint64_t at = write.offset + i;
    if (at >= data.size()) return;
    if (survives(answer, at / kSector - write.offset / kSector, sectors)) data[at] = write.bytes[i];
  }
}

void survive(Inode& inode, const Crash::Answer& answer) {
  const std::size_t old_size = inode.durable.size(), new_size = inode.data.size();
  std::vector<std::byte> data = inode.durable;
  if (old_size != new_size) {
    const unsigned size = answer(new_size > old_size ? kAnswersForGrown : kAnswersForShrunk);
    if (size != kOldSize)
      data.resize(new_size, static_cast<std::byte>(size == kAnything ? 0xA5 : 0));
  }
  for (const DiskState::Write& write : inode.writes)
    if (write.offset < data.size())
      write_part(data, write,
                 answer(sectors_of(write) > 1 ? kAnswersForMore : kAnswersForOneSector));
  inode.durable = inode.data = std::move(data);
  inode.writes.clear();
}

}  // namespace

// Names first: what no name leads to is gone, and no question.
std::unique_ptr<CrashingDisk> Crash::restart(const Answer& answer) const {
  DiskState after = state_;
  for (const DiskState::Change& change : after.changes)
    if (answer(2) != kLost) change_entries(after, &Inode::durable_entries, change);
  after.changes.clear();
  std::vector<ino_t> reached{kRoot};
  for (std::size_t i = 0; i < reached.size(); ++i) {
    Inode& inode = after.inodes.at(reached[i]);
    inode.entries = inode.durable_entries;
    if (!inode.directory) survive(inode, answer);
    for (const auto& [name, child] : inode.entries)
      if (std::ranges::find(reached, child) == reached.end()) reached.push_back(child);
  }
  std::erase_if(after.inodes, [&](const auto& item) {
    return std::ranges::find(reached, item.first) == reached.end();
  });
  return std::make_unique<CrashingDisk>(std::move(after));
}

struct CrashingDisk::OpenFile {
  ino_t number = 0;
  CrashingDisk* disk = nullptr;
  ~OpenFile() {
    const auto lock = disk->locks_.find(number);
    if (lock != disk->locks_.end() && lock->second == this) disk->locks_.erase(lock);
  }
};

CrashingDisk::CrashingDisk() { state_.inodes[kRoot].directory = true; }

// Random names after a cut are others than before.
CrashingDisk::CrashingDisk(DiskState state)
    : state_(std::move(state)), random_(state_.next_inode * 1'000'000) {}

CrashingDisk::~CrashingDisk() = default;

CrashingDisk::OpenFile* CrashingDisk::file(int fd) {
  const auto found = open_.find(fd);
  return found == open_.end() ? nullptr : found->second.get();
}

Inode* CrashingDisk::inode(int fd) {
  const OpenFile* open = file(fd);
  return open ? &state_.inodes.at(open->number) : nullptr;
}

std::pair<ino_t, std::string> CrashingDisk::walk(int directory, const std::string& path) {
  ino_t at = kRoot;
  if (directory != AT_FDCWD && !path.starts_with('/')) {
    const OpenFile* open = file(directory);
    if (!open) return {};
    at = open->number;
  }
  std::string name = ".";
  std::size_t begin = 0;
  while ((begin = path.find_first_not_of('/', begin)) != std::string::npos) {
    if (name != ".") at = entry(at, name);
    if (at == 0) return {};
    const std::size_t end = std::min(path.find('/', begin), path.size());
    name = path.substr(begin, end - begin);
    begin = end;
  }
  return {at, name};
}

ino_t CrashingDisk::entry(ino_t directory, const std::string& name) const {
  const auto& entries = state_.inodes.at(directory).entries;
  const auto found = entries.find(name);
  return found == entries.end() ? 0 : found->second;
}

int CrashingDisk::descriptor(std::shared_ptr<OpenFile> open) {
  open_.emplace(next_fd_, std::move(open));
  return next_fd_++;
}

void CrashingDisk::change(DiskState::Change change) {
  change_entries(state_, &Inode::entries, change);
  state_.changes.push_back(std::move(change));
}

ino_t CrashingDisk::create(ino_t parent, const std::string& name, bool directory, mode_t mode) {
  changing();
  const ino_t number = state_.next_inode++;
  Inode& node = state_.inodes[number];
  node.directory = directory;
  node.mode = mode;
  change({{parent, name, number}});
  return number;
}

int CrashingDisk::openat(int directory, const char* path, int flags, mode_t mode) {
  const auto [parent, name] = walk(directory, path);
  if (parent == 0) return -ENOENT;
  auto open = std::make_shared<OpenFile>();
  open->disk = this;
  open->number = name == "." ? parent : entry(parent, name);
  if (open->number != 0) {
    if ((flags & O_EXCL) != 0) return -EEXIST;
  } else {
    if ((flags & O_CREAT) == 0) return -ENOENT;
    open->number = create(parent, name, false, mode);
  }
  if ((flags & O_DIRECTORY) != 0 && !state_.inodes.at(open->number).directory) return -ENOTDIR;
  return descriptor(std::move(open));
}

int CrashingDisk::close(int fd) { return open_.erase(fd) == 1 ? 0 : -EBADF; }

int CrashingDisk::duplicate(int fd) {
  if (!file(fd)) return -EBADF;
  return descriptor(open_.at(fd));
}

std::int64_t CrashingDisk::pread(int fd, MutableBytes into, std::uint64_t offset) {
  const Inode* node = inode(fd);
  if (!node) return -EBADF;
  if (offset >= node->data.size()) return 0;
  const std::size_t count = std::min<std::size_t>(into.size(), node->data.size() - offset);
  std::copy_n(node->data.begin() + static_cast<std::ptrdiff_t>(offset), count, into.begin());
  return static_cast<std::int64_t>(count);
}

std::int64_t CrashingDisk::pwrite(int fd, ConstBytes bytes, std::uint64_t offset) {
  Inode* node = inode(fd);
  if (!node) return -EBADF;
  changing();
  node->data.resize(std::max<std::size_t>(node->data.size(), offset + bytes.size()));
  std::ranges::copy(bytes, node->data.begin() + static_cast<std::ptrdiff_t>(offset));
  if (!bytes.empty()) node->writes.push_back({offset, {bytes.begin(), bytes.end()}});
  return static_cast<std::int64_t>(bytes.size());
}

int CrashingDisk::fallocate(int fd, std::uint64_t size) {
  Inode* node = inode(fd);
  if (!node) return -EBADF;
  changing();
  node->data.resize(std::max<std::size_t>(node->data.size(), size));
  return 0;
}

int CrashingDisk::ftruncate(int fd, std::uint64_t size) {
  Inode* node = inode(fd);
  if (!node) return -EBADF;
  changing();
  node->data.resize(size);
  return 0;
}

int CrashingDisk::fsync(int fd) {
  Inode* node = inode(fd);
  if (!node) return -EBADF;
  changing();
  if (node->directory ? ignores_sync_of_directories : ignores_sync_of_files) return 0;
  node->durable = node->data;
  node->writes.clear();
  const ino_t number = file(fd)->number;
  std::erase_if(state_.changes, [&](const DiskState::Change& pending) {
    if (std::ranges::find(pending, number, &DiskState::Entry::directory) == pending.end())
      return false;
    change_entries(state_, &Inode::durable_entries, pending);
    return true;
  });
  return 0;
}

int CrashingDisk::fstat(int fd, struct stat& status) {
  const Inode* node = inode(fd);
  if (!node) return -EBADF;
  status = {};
  status.st_ino = file(fd)->number;
  status.st_mode = node->mode | static_cast<mode_t>(node->directory ? S_IFDIR : S_IFREG);
  status.st_size = static_cast<off_t>(node->data.size());
  return 0;
}

int CrashingDisk::fchmod(int fd, mode_t mode) {
  Inode* node = inode(fd);
  if (!node) return -EBADF;
  node->mode = mode;
  return 0;
}

int CrashingDisk::lock(int fd, int command, struct flock& lock) {
  const OpenFile* open = file(fd);
  if (!open) return -EBADF;
  if (command == F_GETLK) lock.l_type = F_UNLCK;
  if (command != F_OFD_SETLK) return 0;
  const auto [holder, taken] = locks_.emplace(open->number, open);
  return taken || holder->second == open ? 0 : -EAGAIN;
}

int CrashingDisk::fstatat(int directory, const char* name, struct stat& status, int) {
  const int fd = openat(directory, name, O_RDONLY, 0);
  if (fd < 0) return fd;
  const int result = fstat(fd, status);
  close(fd);
  return result;
}

int CrashingDisk::renameat2(int from_directory, const char* from, int to_directory, const char* to,
                            unsigned flags) {
  const auto [source, from_name] = walk(from_directory, from);
  const auto [target, to_name] = walk(to_directory, to);
  if (source == 0 || target == 0 || entry(source, from_name) == 0) return -ENOENT;
  if ((flags & RENAME_NOREPLACE) != 0 && entry(target, to_name) != 0) return -EEXIST;
  changing();
  const ino_t node = entry(source, from_name);
  const ino_t other = entry(target, to_name);
  if ((flags & RENAME_EXCHANGE) != 0 && other == 0) return -ENOENT;
  const DiskState::Entry come{target, to_name, node};
  const DiskState::Entry gone{source, from_name, (flags & RENAME_EXCHANGE) != 0 ? other : 0};
  if (source == target || state_.inodes.at(node).directory) {
    change({gone, come});
    return 0;
  }
  change({come});
  change({gone});
  return 0;
}

int CrashingDisk::unlinkat(int directory, const char* path) {
  const auto [parent, name] = walk(directory, path);
  if (parent == 0 || entry(parent, name) == 0) return -ENOENT;
  if (state_.inodes.at(entry(parent, name)).directory) return -EISDIR;
  changing();
  change({{parent, name, 0}});
  return 0;
}

int CrashingDisk::rmdirat(int directory, const char* path) {
  const auto [parent, name] = walk(directory, path);
  if (parent == 0 || entry(parent, name) == 0) return -ENOENT;
  const Inode& node = state_.inodes.at(entry(parent, name));
  if (!node.directory) return -ENOTDIR;
  if (!node.entries.empty()) return -ENOTEMPTY;
  changing();
  change({{parent, name, 0}});
  return 0;
}

int CrashingDisk::mkdirat(int directory, const char* path, mode_t mode) {
  const auto [parent, name] = walk(directory, path);
  if (parent == 0) return -ENOENT;
  if (entry(parent, name) != 0) return -EEXIST;
  create(parent, name, true, mode);
  return 0;
}

int CrashingDisk::readlinkat(int directory, const char* path, std::string&) {
  const auto [parent, name] = walk(directory, path);
  return parent != 0 && (name == "." || entry(parent, name) != 0) ? -EINVAL : -ENOENT;
}

int CrashingDisk::list(int directory, std::vector<std::string>& names) {
  const Inode* node = inode(directory);
  if (!node) return -EBADF;
  for (const auto& [name, child] : node->entries) names.push_back(name);
  return 0;
}

int CrashingDisk::available(int, std::uint64_t& bytes) {
  bytes = UINT64_MAX;
  return 0;
}

}  // namespace perdure::test
