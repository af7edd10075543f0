#include "io/ring.hpp"

#include <liburing.h>

#include <algorithm>
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

class Uring final : public Ring {
 public:
  Uring(System& system, const io_uring& ring) : ring_(ring), instead_(system) {}
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;
  ~Uring() override { io_uring_queue_exit(&ring_); }

  void read(int fd, MutableBytes into, std::uint64_t offset, std::uint64_t tag) override {
    const MutableBytes part = into.first(std::min(into.size(), kMaxTransfer));
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return ++done_instead_, instead_.read(fd, part, offset, tag);
    io_uring_prep_read(entry, fd, part.data(), static_cast<unsigned>(part.size()), offset);
    submit(entry, tag);
  }
  void write(int fd, ConstBytes bytes, std::uint64_t offset, std::uint64_t tag) override {
    const ConstBytes part = bytes.first(std::min(bytes.size(), kMaxTransfer));
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return ++done_instead_, instead_.write(fd, part, offset, tag);
    io_uring_prep_write(entry, fd, part.data(), static_cast<unsigned>(part.size()), offset);
    submit(entry, tag);
  }

  Completion wait() override {
    if (done_instead_ > 0) {
      --done_instead_;
      return instead_.wait();
    }
    // What could not be handed over yet (a full completion queue, no memory for the moment) goes
    // with this call.
    io_uring_cqe* entry = nullptr;
    while (entry == nullptr) {
      if (io_uring_submit_and_wait(&ring_, 1) < 0 && io_uring_cq_ready(&ring_) == 0) continue;
      if (io_uring_peek_cqe(&ring_, &entry) < 0) entry = nullptr;
    }
    const Completion completion{entry->user_data, entry->res};
    io_uring_cqe_seen(&ring_, entry);
    return completion;
  }

 private:
  void submit(io_uring_sqe* entry, std::uint64_t tag) {
    io_uring_sqe_set_data64(entry, tag);
    io_uring_submit(&ring_);  // an error leaves it in the queue, and wait() tries again
  }

  io_uring ring_;
  SynchronousRing instead_;  // for transfers beyond the depth
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
