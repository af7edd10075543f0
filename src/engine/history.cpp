#include "engine/history.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "engine/save_file.hpp"
#include "format/json.hpp"
#include "storage/local_storage.hpp"

namespace perdure {
namespace {

Value metrics_value(const Metrics& metrics) {
  Dict out;
  for (const auto& [name, value] : metrics) out.set(name, value);
  return out;
}

// Lines that are deeper or longer are not ours. A pruning of 10,000 checkpoints takes 700,000
// bytes.
constexpr std::size_t kMaxDepth = 8;
constexpr std::size_t kMaxLine = std::size_t{1} << 20;
// A million saves take less. Of more, what happened last is what people want to know.
constexpr std::uint64_t kMaxHistory = std::uint64_t{256} << 20;
constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;

std::optional<Value> parse_line(std::string_view line) {
  try {
    Value event = format::read_json(line, engine::kHistoryName, kMaxDepth);
    if (event.is_mapping()) return event;
  } catch (const Error&) {
    // Torn, or somebody else's.
  }
  return std::nullopt;
}

// A disk that hangs for days must not eat the memory.
constexpr std::size_t kMostWaiting = 10'000;

}  // namespace

namespace engine {

void HistoryReader::take(std::string_view piece) {
  while (true) {
    const std::size_t end = std::min(piece.find('\n'), piece.size());
    too_long_ = too_long_ || line_.size() + end > kMaxLine;
    if (!too_long_) line_ += piece.substr(0, end);
    if (end == piece.size()) return;
    end_line();
    piece.remove_prefix(end + 1);
  }
}

std::vector<Value> HistoryReader::finish() {
  end_line();
  return std::exchange(events_, {});
}

void HistoryReader::end_line() {
  if (!too_long_)
    if (auto event = parse_line(line_)) events_.push_back(std::move(*event));
  line_.clear();
  too_long_ = false;
}

History::History(std::shared_ptr<storage::Storage> storage,
                 std::function<void(const std::string&)> warning)
    : storage_(std::move(storage)), warning_(std::move(warning)) {}

template <class Fill>
void History::add(const char* event, Fill&& fill) noexcept {
  if (!storage_) return;
  try {
    Dict json{{"event", event}, {"time", now_since_1970()}};
    fill(json);
    std::string line = format::write_json(Value(std::move(json)));
    const std::lock_guard guard(mutex_);
    if (lines_.size() < kMostWaiting) lines_.push_back(std::move(line));
  } catch (const std::exception& error) {
    warn(error.what());
  }
}

template <class Fill>
void History::write(const char* event, Fill&& fill) noexcept {
  add(event, std::forward<Fill>(fill));
  write();
}

// In order: the next one is taken when the one before is written.
void History::write() noexcept {
  try {
    const std::lock_guard guard(writing_);
    for (std::string line = take_next(); !line.empty(); line = take_next())
      storage_->append_line(kHistoryName, line);
  } catch (const std::exception& error) {
    warn(error.what());
  } catch (...) {
    // Of a storage of somebody else's, who knows what.
  }
}

std::string History::take_next() {
  const std::lock_guard guard(mutex_);
  if (lines_.empty()) return "";
  std::string line = std::move(lines_.front());
  lines_.pop_front();
  return line;
}

void History::warn(const char* problem) noexcept {
  try {
    {
      const std::lock_guard guard(mutex_);
      if (std::exchange(told_, true)) return;
    }
    warning_(fmt::format("the history of the run is not written (nothing else is affected): {}",
                         problem));
  } catch (...) {
    // There is nobody left to tell.
  }
}

void History::saved(const Checkpoint& checkpoint, const SaveStats& stats) noexcept {
  write("save", [&](Dict& json) {
    json.set("step", checkpoint.step());
    json.set("generation", checkpoint.generation());
    json.set("parent", checkpoint.info.parent);
    json.set("reason", checkpoint.info.reason);
    json.set("bytes", checkpoint.size);
    json.set("stalled", stats.stalled.count());
    json.set("durable", stats.durable.count());
    json.set("metrics", metrics_value(checkpoint.info.metrics));
  });
}

void History::failed(const CheckpointInfo& info, const std::string& error) noexcept {
  write("failure", [&](Dict& json) {
    json.set("step", info.step);
    json.set("generation", info.generation);
    json.set("error", error);
  });
}

void History::skipped(std::int64_t step, const std::string& why) noexcept {
  add("skip", [&](Dict& json) {
    json.set("step", step);
    json.set("why", why);
  });
}

void History::restored(const Checkpoint& checkpoint, double seconds) noexcept {
  write("restore", [&](Dict& json) {
    json.set("step", checkpoint.step());
    json.set("generation", checkpoint.generation());
    json.set("path", checkpoint.path.string());
    json.set("bytes", checkpoint.size);
    json.set("seconds", seconds);
  });
}

void History::set_aside(const std::string& name, const std::string& damage) noexcept {
  write("damaged", [&](Dict& json) {
    json.set("set_aside", name);
    json.set("damage", damage);
  });
}

void History::pruned(const std::vector<PlannedCheckpoint>& plan) noexcept {
  if (std::ranges::all_of(plan, &PlannedCheckpoint::kept)) return;
  write("prune", [&](Dict& json) {
    Value::Items gone;
    for (const PlannedCheckpoint& item : plan)
      if (!item.kept())
        gone.push_back(Dict{{"step", item.checkpoint.step()},
                            {"generation", item.checkpoint.generation()},
                            {"bytes", item.checkpoint.size}});
    json.set("removed", Value::list(std::move(gone)));
  });
}

void History::pinned(std::int64_t step, std::uint64_t generation,
                     const std::string& reason) noexcept {
  write("pin", [&](Dict& json) {
    json.set("step", step);
    json.set("generation", generation);
    json.set("reason", reason);
  });
}

void History::unpinned(std::int64_t step, std::uint64_t generation) noexcept {
  write("unpin", [&](Dict& json) {
    json.set("step", step);
    json.set("generation", generation);
  });
}

void History::interval_picked(std::chrono::duration<double> interval,
                              std::chrono::duration<double> cost) noexcept {
  add("interval", [&](Dict& json) {
    json.set("seconds", interval.count());
    json.set("cost", cost.count());
  });
}

}  // namespace engine

std::vector<Value> read_history(const std::filesystem::path& directory) {
  return engine::read_history(*storage::LocalStorage::open_folder(io::real_system(), directory));
}

std::vector<Value> engine::read_history(const storage::Storage& storage) {
  HistoryReader reader;
  try {
    const auto source = storage.open(kHistoryName);
    const std::uint64_t size = source->size();
    std::string piece(kPiece, '\0');
    // Where it does not begin at the beginning, the first line is torn, and so left out.
    for (std::uint64_t at = size - std::min(size, kMaxHistory); at < size; at += piece.size()) {
      piece.resize(std::min(kPiece, size - at));
      source->read(at, std::as_writable_bytes(std::span(piece)));
      reader.take(piece);
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::not_found) throw;
  }
  return reader.finish();
}

}  // namespace perdure
