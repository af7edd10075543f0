#include "io/ring.hpp"

#include <liburing.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "io/system.hpp"

namespace perdure::io {

void SynchronousRing::read(int fd, MutableBytes into, std::uint64_t offset, std::uint64_t tag) {
  done_.push_back({tag, system_.pread(fd, into, offset)});
}

void SynchronousRing::write(int fd, ConstBytes bytes, std::uint64_t offset, std::uint64_t tag) {
  done_.push_back({tag, system_.pwrite(fd, bytes, offset)});
}

Ring::Completion SynchronousRing::wait() {
  const Completion completion = done_.front();
  done_.pop_front();
  return completion;
}

namespace {

// What one call may move: Linux stops at 2 GiB less a page.
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;
// A kernel that says so often that it takes nothing and has nothing will not mend.
constexpr int kMaxRefusals = 100;
// Between looks for what the kernel is still doing, where it cannot be asked to wait.
constexpr useconds_t kPause = 200;

class Uring final : public Ring {
 public:
  Uring(System& system, const io_uring& ring) : ring_(ring), instead_(system) {}
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;
  ~Uring() override { io_uring_queue_exit(&ring_); }

  void read(int fd, MutableBytes into, std::uint64_t offset, std::uint64_t tag) override {
    const MutableBytes part = into.first(std::min(into.size(), kMaxTransfer));
    io_uring_sqe* entry = next_entry();
    if (entry == nullptr) return ++done_instead_, instead_.read(fd, part, offset, tag);
    io_uring_prep_read(entry, fd, part.data(), static_cast<unsigned>(part.size()), offset);
    submit(entry, tag);
  }
  void write(int fd, ConstBytes bytes, std::uint64_t offset, std::uint64_t tag) override {
    const ConstBytes part = bytes.first(std::min(bytes.size(), kMaxTransfer));
    io_uring_sqe* entry = next_entry();
    if (entry == nullptr) return ++done_instead_, instead_.write(fd, part, offset, tag);
    io_uring_prep_write(entry, fd, part.data(), static_cast<unsigned>(part.size()), offset);
    submit(entry, tag);
  }

  // What could not be handed over yet (a full completion queue, no memory for the moment) goes with
  // the call that waits.
  Completion wait() override {
    io_uring_cqe* entry = nullptr;
    for (int refusals = 0; done_instead_ == 0 && io_uring_peek_cqe(&ring_, &entry) < 0;) {
      if (refused_) {
        ::usleep(kPause);
        continue;
      }
      const int result = io_uring_submit_and_wait(&ring_, 1);
      if (result < 0 && result != -EINTR && ++refusals == kMaxRefusals) take_back();
    }
    if (done_instead_ > 0) {
      --done_instead_;
      return instead_.wait();
    }
    const Completion completion{entry->user_data, entry->res};
    io_uring_cqe_seen(&ring_, entry);
    return completion;
  }

 private:
  io_uring_sqe* next_entry() { return refused_ ? nullptr : io_uring_get_sqe(&ring_); }
  void submit(io_uring_sqe* entry, std::uint64_t tag) {
    io_uring_sqe_set_data64(entry, tag);
    io_uring_submit(&ring_);  // an error leaves it in the queue, and wait() tries again
  }

  // The kernel takes no more (a sandbox that was closed since): what it has not taken is done
  // without it, and so is all that comes. What it has taken, it ends by itself.
  void take_back() {
    refused_ = true;
    const unsigned end = ring_.sq.sqe_tail;
    for (unsigned i = end - io_uring_sq_ready(&ring_); i != end; ++i) {
      const io_uring_sqe& entry = ring_.sq.sqes[i & ring_.sq.ring_mask];
      const MutableBytes bytes(reinterpret_cast<std::byte*>(entry.addr), entry.len);
      ++done_instead_;
      if (entry.opcode == IORING_OP_READ)
        instead_.read(entry.fd, bytes, entry.off, entry.user_data);
      else
        instead_.write(entry.fd, bytes, entry.off, entry.user_data);
    }
  }

  io_uring ring_;
  bool refused_ = false;
  SynchronousRing instead_;  // for transfers beyond the depth, and those that are refused
  std::size_t done_instead_ = 0;
};

}  // namespace

std::unique_ptr<Ring> open_uring(System& system, unsigned depth) {
  io_uring ring = {};
  if (io_uring_queue_init(depth, &ring, 0) < 0) return nullptr;
  try {
    return std::make_unique<Uring>(system, ring);
  } catch (...) {
    io_uring_queue_exit(&ring);
    throw;
  }
}

}  // namespace perdure::io
