// What the ranks of a run tell each other, over their store of messages (perdure/ranks.hpp). Nobody
// waits without an end: who waits for a rank that shows no sign of life for rank_timeout gets
// Error(io) that names it. A rank shows life while it writes, and rank 0 while it waits; the others
// wait for rank 0 alone, and show none, so that it finds out where it waits for them meanwhile.
//
// Rank 0 leads: what is decided, it decides, and tells the others.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <perdure/error.hpp>
#include <perdure/ranks.hpp>
#include <string>
#include <thread>
#include <vector>

namespace perdure::engine {

class RankTalk {
 public:
  using Seconds = std::chrono::duration<double>;

  RankTalk(std::shared_ptr<Ranks> ranks, Seconds timeout);

  std::size_t rank() const { return ranks_->rank(); }
  std::size_t size() const { return ranks_->size(); }
  bool leads() const { return rank() == 0; }

  // --- Any thread ---

  void tell(const std::string& key, const std::string& message);
  bool has(const std::string& key);
  // Waits for it, as long as `from`, who is to tell it, lives.
  std::string hear(const std::string& key, std::size_t from);
  void forget(const std::string& key);
  // At most now and then, so that it may be called for every block.
  void show_life();

  // As long as the result lives, life is shown: for what takes long and has no blocks to count.
  std::jthread living();

  // What rank 0 gets from `lead`, or throws there, all ranks get.
  std::string led(const std::string& key, const std::function<std::string()>& lead);
  // Whether all went well: where `mine` or that of another rank is an error, every rank gets one.
  // Error(corrupt) only where it is nothing worse anywhere.
  void agree(const std::string& key, const std::exception_ptr& mine);
  // Of rank 0. All will have heard it when they have told what comes next;
  void forget_later(const std::string& key);
  // and now all have.
  void all_have_told();

 private:
  std::shared_ptr<Ranks> ranks_;
  Seconds timeout_;
  std::string prefix_;
  std::mutex mutex_;  // of what follows
  std::chrono::steady_clock::time_point shown_{};
  std::uint64_t life_ = 0;
  std::vector<std::string> over_;  // what all have heard once they have told what comes next
};

// An error as a message, and back: "" is none.
std::string message_of(const std::exception_ptr& error);
// The error in a message, with who told it in front; null for "".
std::exception_ptr error_in(const std::string& message, std::size_t from);

}  // namespace perdure::engine
