// A disk in memory whose power can be cut: it keeps what was synced, and of the rest only what it
// likes.
//
// File data and directory entries are separate, as in POSIX: fsync of a file makes its bytes
// durable, fsync of a directory the names in it, and neither the other. A rename within a directory
// is one change; one across directories is two, of which one may survive alone. After the cut,
// every call fails and changes nothing, so that destructors and clean-up code can run and do no
// more than on a machine that is off.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "io/system.hpp"

namespace perdure::test {

// What of the unsynced survives a power cut.
enum class Survival {
  nothing,
  everything,  // as after kill -9
  names,       // every directory change, no data: files are there, empty or full of zeros
  data,        // all bytes, no name
  random,      // each change and each file by a toss of a coin
};
inline constexpr Survival kAllSurvivals[] = {Survival::nothing, Survival::everything,
                                             Survival::names, Survival::data, Survival::random};

class CrashingDisk final : public io::System {
 public:
  CrashingDisk();
  ~CrashingDisk() override;

  // The power goes off before the n-th change from now on (counted from 1).
  void cut_power_before(std::uint64_t n) { cut_at_ = changes_ + n; }
  bool is_off() const { return off_; }
  std::uint64_t changes() const { return changes_; }  // that were asked for so far
  // Off and on again: descriptors and locks are gone. `seed` is for Survival::random.
  void restart(Survival survival, unsigned seed = 0);

  bool ignores_sync = false;  // a disk that lies: so that a test can show that it would notice

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
  int mkdirat(int directory, const char* name, mode_t mode) override;
  int readlinkat(int directory, const char* name, std::string& target) override;
  int list(int directory, std::vector<std::string>& names) override;
  int available(int fd, std::uint64_t& bytes) override;
  std::uint64_t file_size_limit() override { return UINT64_MAX; }
  std::uint64_t random() override { return ++random_; }
  pid_t process_id() override { return 4711; }

 private:
  struct Inode;
  struct OpenFile;
  struct Change;
  using Node = std::shared_ptr<Inode>;

  bool change();  // counts one; false where the power is off
  OpenFile* file(int fd);
  // The directory that holds the last name of `path`, and that name.
  std::pair<Node, std::string> walk(int directory, const std::string& path);
  int create(const Node& parent, const std::string& name, Node node);
  int descriptor(std::shared_ptr<OpenFile> file);

  Node root_;
  std::map<int, std::shared_ptr<OpenFile>> open_;
  std::vector<Change> pending_;  // directory changes that no sync has covered yet, in order
  std::uint64_t changes_ = 0;
  std::uint64_t cut_at_ = UINT64_MAX;
  std::uint64_t random_ = 0;
  ino_t next_inode_ = 2;
  int next_fd_ = 1000;
  bool off_ = false;
};

}  // namespace perdure::test
