// What a SaveHandle refers to: written once by the save, read by any number of threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <perdure/checkpoint_manager.hpp>
#include <vector>

namespace perdure {

struct SaveHandle::State {
  mutable std::mutex mutex;
  std::condition_variable finished;
  bool done = false;
  bool skipped = false;
  bool seen = false;  // somebody was given the error: wait() and close() of the manager need not
                      // throw it again
  std::exception_ptr error;
  std::optional<Checkpoint> checkpoint;
  SaveStats stats;
  std::uint64_t handed_over = 0;  // bytes that the storage was given
  std::uint64_t moves = 0;        // goes up whenever something of this save is done

  // `change` gets the statistics, which others may read at the same time.
  template <class Change>
  void update(Change&& change) {
    const std::lock_guard guard(mutex);
    change(stats);
    ++moves;
  }
  void succeed(Checkpoint saved);
  void fail(std::exception_ptr failure);
  void skip();
  std::uint64_t count_moves() const {
    const std::lock_guard guard(mutex);
    return moves;
  }
  bool has_failed() const {  // and does not count as seen for that
    const std::lock_guard guard(mutex);
    return error != nullptr;
  }
  void rethrow_if_failed();          // once done; the error counts as seen
  std::exception_ptr take_unseen();  // null where there is none; it counts as seen
};

// The first error of several saves that nobody has seen, null where there is none; all count as
// seen then.
std::exception_ptr take_first_unseen(const std::vector<std::shared_ptr<SaveHandle::State>>& saves);

}  // namespace perdure
