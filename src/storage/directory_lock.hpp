// Exclusive ownership of a directory: a POSIX record lock on `.lock` in it.
//
// The kernel frees it when the process that took it ends, however it ends, also while children that
// it forked live on (an OFD lock or flock would live on in them: DataLoader workers outlast a
// killed trainer). Two weaknesses of POSIX locks are dealt with: they do not exclude within a
// process (a registry of ours does), and closing any descriptor of the file drops the lock (the
// registry is asked before the file is opened).
#pragma once

#include <memory>

#include "io/directory.hpp"

namespace perdure::storage {

class DirectoryLock {
 public:
  // Error(locked) names the holder. A file system that has no locks at all is accepted: there, only
  // the managers of one process exclude each other, and two processes meet at the commit, which
  // never replaces a checkpoint.
  explicit DirectoryLock(std::shared_ptr<const io::Directory> directory);
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  ~DirectoryLock();

 private:
  void take(pid_t self);

  std::shared_ptr<const io::Directory> directory_;
  struct stat identity_;  // of the directory
  io::UniqueFd file_;
};

}  // namespace perdure::storage
