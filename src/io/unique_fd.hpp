// A file descriptor that is closed when its owner goes: through the System that opened it.
#pragma once

#include <utility>

#include "io/system.hpp"

namespace perdure::io {

class UniqueFd {
 public:
  UniqueFd() noexcept = default;
  UniqueFd(System& system, int fd) noexcept : system_(&system), fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : system_(other.system_), fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      close();
      system_ = other.system_;
      fd_ = other.release();
    }
    return *this;
  }
  ~UniqueFd() { close(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }
  // 0 or -errno. Not to be repeated: Linux has closed the descriptor even where it reports an
  // error.
  int close() noexcept { return fd_ < 0 ? 0 : system_->close(release()); }

 private:
  System* system_ = nullptr;
  int fd_ = -1;
};

}  // namespace perdure::io
