// history.jsonl: what happened in a run directory, one JSON object a line (docs/format.md).
//
// Written for people. Nothing relies on it: it is not synced, and what cannot be written is told
// once and left out. What the thread that trains has to tell while a save is in flight is written
// with the next event of another thread, or at the end: the disk may be one that hangs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <perdure/checkpoint_manager.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "storage/storage.hpp"

namespace perdure::engine {

inline constexpr const char* kHistoryName = "history.jsonl";

// Reads events off a history, which comes in pieces of any size. What is no event of ours costs no
// memory: lines that are torn, no JSON objects, too long, or nested too deeply are left out.
class HistoryReader {
 public:
  void take(std::string_view piece);
  std::vector<Value> finish();  // all events

 private:
  void end_line();

  std::string line_;
  bool too_long_ = false;
  std::vector<Value> events_;
};

// Safe to use from any thread. Nothing here throws.
class History {
 public:
  // Without a storage, nothing is written: another rank does that.
  History(std::shared_ptr<storage::Storage> storage,
          std::function<void(const std::string&)> warning);

  void saved(const Checkpoint& checkpoint, const SaveStats& stats) noexcept;
  void failed(const CheckpointInfo& info, const std::string& error) noexcept;
  void skipped(std::int64_t step, const std::string& why) noexcept;  // waits for no disk
  void restored(const Checkpoint& checkpoint, double seconds) noexcept;
  void set_aside(const std::string& name, const std::string& damage) noexcept;
  void pruned(const std::vector<PlannedCheckpoint>& plan) noexcept;
  void pinned(std::int64_t step, std::uint64_t generation, const std::string& reason) noexcept;
  void unpinned(std::int64_t step, std::uint64_t generation) noexcept;
  // Waits for no disk.
  void interval_picked(std::chrono::duration<double> interval,
                       std::chrono::duration<double> cost) noexcept;
  void write() noexcept;  // what has yet to be

 private:
  template <class Fill>
  void add(const char* event, Fill&& fill) noexcept;
  template <class Fill>
  void write(const char* event, Fill&& fill) noexcept;
  void warn(const char* problem) noexcept;
  std::string take_next();

  std::shared_ptr<storage::Storage> storage_;
  std::function<void(const std::string&)> warning_;
  std::mutex writing_;  // held while the disk is waited for
  std::mutex mutex_;    // of what follows, never held for long
  std::deque<std::string> lines_;
  bool told_ = false;
};

// What perdure::read_history gives, of a run directory in any storage.
std::vector<Value> read_history(const storage::Storage& storage);

}  // namespace perdure::engine
