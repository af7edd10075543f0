// A disk in memory whose power can be cut: it keeps what was synced, and of the rest any part that
// a real one may keep.
//
// What POSIX promises, and no more. fsync of a file makes its bytes and its size durable, fsync of
// a directory the names in it, and neither the other. Of what was not synced, each of these
// survives or is lost by itself, whatever the order was in which they were made:
//
//   - each change of a directory. A rename within one is one change; one across two is two, but of
//   a
//     directory, which no file system lets have two names or none, one;
//   - each write to a file, whole, not at all, or torn: some of its sectors of 512 bytes;
//   - the size of a file. Where it grew and the bytes did not come, they are zeros or anything.
//
// A Crash is what the disk knows at one moment. restart() makes the disk that is found after it,
// and asks for every one of these questions what the answer is: so that a test can go through all
// answers, or take some by a seed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "io/system.hpp"

namespace perdure::test {

class CrashingDisk;

// The state of a disk: what programs see, what is durable, and what is in between.
struct DiskState {
  struct Write {
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };
  struct Inode {
    bool directory = false;
    mode_t mode = 0;
    std::vector<std::byte> data;
    std::vector<std::byte> durable;
    std::vector<Write> writes;  // since the last sync, in order
    std::map<std::string, ino_t> entries;
    std::map<std::string, ino_t> durable_entries;
  };
  // Entries that change together; 0: the name goes. A sync of one of their directories is enough.
  struct Entry {
    ino_t directory = 0;
    std::string name;
    ino_t node = 0;
  };
  using Change = std::vector<Entry>;

  std::map<ino_t, Inode> inodes;
  std::vector<Change> changes;  // of directories, that no sync has covered yet, in order
  ino_t next_inode = 2;
};

class Crash {
 public:
  // Asked with the number of answers that there are (2 or more); gives one, from 0. In every
  // question 0 is "lost", and 1 "survives".
  using Answer = std::function<unsigned(unsigned count)>;

  explicit Crash(DiskState state) : state_(std::move(state)) {}
  std::unique_ptr<CrashingDisk> restart(const Answer& answer) const;

 private:
  DiskState state_;
};

class CrashingDisk : public io::System {
 public:
  CrashingDisk();
  explicit CrashingDisk(DiskState state);
  ~CrashingDisk() override;

  // Called before each change that is asked for: the moments at which a power cut makes a
  // difference.
  std::function<void()> before_change;
  Crash crash() const { return Crash(state_); }
  std::size_t open_descriptors() const { return open_.size(); }

  // A disk that lies: so that a test can show that it would notice.
  bool ignores_sync_of_files = false;
  bool ignores_sync_of_directories = false;

  int openat(int directory, const char* path, int flags, mode_t mode) override;
  int close(int fd) override;
  int duplicate(int fd) override;
  std::int64_t pread(int fd, MutableBytes into, std::uint64_t offset) override;
  std::int64_t pwrite(int fd, ConstBytes bytes, std::uint64_t offset) override;
  int fallocate(int fd, std::uint64_t size) override;
  int ftruncate(int fd, std::uint64_t size) override;
  int fsync(int fd) override;
  int set_direct(int, bool) override { return -EINVAL; }
  int fstat(int fd, struct stat& status) override;
  int fchmod(int fd, mode_t mode) override;
  int lock(int fd, int command, struct flock& lock) override;
  int fstatat(int directory, const char* name, struct stat& status, int flags) override;
  int renameat2(int from_directory, const char* from, int to_directory, const char* to,
                unsigned flags) override;
  int unlinkat(int directory, const char* name) override;
  int rmdirat(int directory, const char* name) override;
  int mkdirat(int directory, const char* name, mode_t mode) override;
  int readlinkat(int directory, const char* name, std::string& target) override;
  int list(int directory, std::vector<std::string>& names) override;
  int available(int fd, std::uint64_t& bytes) override;
  std::uint64_t file_size_limit() override { return UINT64_MAX; }
  std::uint64_t random() override { return ++random_; }
  pid_t process_id() override { return 4711; }

 private:
  struct OpenFile;

  void changing() const {
    if (before_change) before_change();
  }
  OpenFile* file(int fd);
  DiskState::Inode* inode(int fd);
  void change(DiskState::Change change);
  // The directory that holds the last name of `path`, 0 where there is none, and that name.
  std::pair<ino_t, std::string> walk(int directory, const std::string& path);
  ino_t entry(ino_t directory, const std::string& name) const;  // 0: none
  ino_t create(ino_t parent, const std::string& name, bool directory, mode_t mode);
  int descriptor(std::shared_ptr<OpenFile> file);

  DiskState state_;
  std::map<ino_t, const OpenFile*> locks_;  // OFD; record locks are all this one process's own
  std::map<int, std::shared_ptr<OpenFile>> open_;
  std::uint64_t random_ = 0;
  int next_fd_ = 1000;
};

}  // namespace perdure::test
