// Reads and writes that go on behind the caller's back: io_uring, or one after the other where the
// kernel or a sandbox refuses it.
//
// One thread owns a Ring. The memory and the descriptor of a transfer belong to the kernel until
// wait() has given its completion: drain a Ring before they go.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <perdure/error.hpp>

namespace perdure::io {

class System;

class Ring {
 public:
  struct Completion {
    std::uint64_t tag = 0;
    std::int64_t result = 0;  // bytes moved, which may be fewer than asked for; or -errno
  };

  virtual ~Ring() = default;
  // At most `depth` (of open_ring) may be in flight.
  virtual void read(int fd, MutableBytes into, std::uint64_t offset, std::uint64_t tag) = 0;
  virtual void write(int fd, ConstBytes bytes, std::uint64_t offset, std::uint64_t tag) = 0;
  // The next one that is done, in any order; blocks. Only while something is in flight.
  virtual Completion wait() = 0;
};

// Each transfer is a pread or pwrite of `system`'s, made at once.
class SynchronousRing final : public Ring {
 public:
  explicit SynchronousRing(System& system) : system_(system) {}
  void read(int fd, MutableBytes into, std::uint64_t offset, std::uint64_t tag) override;
  void write(int fd, ConstBytes bytes, std::uint64_t offset, std::uint64_t tag) override;
  Completion wait() override;

 private:
  System& system_;
  std::deque<Completion> done_;
};

// nullptr where there is no io_uring to be had. Buffers are not registered: for ordinary users the
// locked memory that it takes is limited to a few MiB.
std::unique_ptr<Ring> open_uring(System& system, unsigned depth);

}  // namespace perdure::io
