#include "engine/history.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/save_file.hpp"
#include "storage/local_storage.hpp"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no NaN and no infinities: they are strings, as in checkpoint.json.
Json metrics_json(const Metrics& metrics) {
  Json out = Json::object();
  for (const auto& [name, value] : metrics)
    if (std::isfinite(value))
      out[name] = value;
    else
      out[name] = fmt::format("{}", value);
  return out;
}

Value to_value(const Json& json) {
  if (json.is_object()) {
    Dict dict;
    for (const auto& [key, item] : json.items()) dict.set(key, to_value(item));
    return Value(std::move(dict));
  }
  if (json.is_array()) {
    Value::Items items;
    for (const Json& item : json) items.push_back(to_value(item));
    return Value::list(std::move(items));
  }
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() && !std::in_range<std::int64_t>(json.get<std::uint64_t>()))
    return json.get<double>();
  if (json.is_number_integer()) return json.get<std::int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  return nullptr;
}

// Whatever is in it, its lines are no deeper than so: deeper ones are not ours.
constexpr int kMaxDepth = 8;

std::optional<Value> parse_line(std::string_view line) {
  const auto shallow = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) throw Error(ErrorCode::corrupt, "too deep");
    return true;
  };
  try {
    const Json json = Json::parse(line, shallow);
    if (json.is_object()) return to_value(json);
  } catch (const std::exception&) {
    // Torn, or somebody else's.
  }
  return std::nullopt;
}

// A disk that hangs for days must not eat the memory.
constexpr std::size_t kMostWaiting = 10'000;

}  // namespace

namespace engine {

History::History(std::shared_ptr<storage::Storage> storage,
                 std::function<void(const std::string&)> warning)
    : storage_(std::move(storage)), warning_(std::move(warning)) {}

template <class Fill>
void History::add(const char* event, Fill&& fill) noexcept {
  try {
    Json json;
    json["event"] = event;
    json["time"] = now_since_1970();
    fill(json);
    std::string line = json.dump(-1, ' ', true, Json::error_handler_t::replace);
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

void History::warn(const std::string& problem) noexcept {
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
  write("save", [&](Json& json) {
    json["step"] = checkpoint.step();
    json["generation"] = checkpoint.generation();
    json["parent"] = checkpoint.info.parent;
    json["reason"] = checkpoint.info.reason;
    json["bytes"] = checkpoint.size;
    json["stalled"] = stats.stalled.count();
    json["durable"] = stats.durable.count();
    json["metrics"] = metrics_json(checkpoint.info.metrics);
  });
}

void History::failed(const CheckpointInfo& info, const std::string& error) noexcept {
  write("failure", [&](Json& json) {
    json["step"] = info.step;
    json["generation"] = info.generation;
    json["error"] = error;
  });
}

void History::skipped(std::int64_t step, const std::string& why) noexcept {
  add("skip", [&](Json& json) {
    json["step"] = step;
    json["why"] = why;
  });
}

void History::restored(const Checkpoint& checkpoint, double seconds) noexcept {
  write("restore", [&](Json& json) {
    json["step"] = checkpoint.step();
    json["generation"] = checkpoint.generation();
    json["path"] = checkpoint.path.string();
    json["bytes"] = checkpoint.size;
    json["seconds"] = seconds;
  });
}

void History::set_aside(const std::string& name, const std::string& damage) noexcept {
  write("damaged", [&](Json& json) {
    json["set_aside"] = name;
    json["damage"] = damage;
  });
}

void History::pruned(const std::vector<PlannedCheckpoint>& plan) noexcept {
  Json gone = Json::array();
  for (const PlannedCheckpoint& item : plan)
    if (!item.kept())
      gone.push_back({{"step", item.checkpoint.step()},
                      {"generation", item.checkpoint.generation()},
                      {"bytes", item.checkpoint.size}});
  if (gone.empty()) return;
  write("prune", [&](Json& json) { json["removed"] = std::move(gone); });
}

void History::pinned(std::int64_t step, std::uint64_t generation,
                     const std::string& reason) noexcept {
  write("pin", [&](Json& json) {
    json["step"] = step;
    json["generation"] = generation;
    json["reason"] = reason;
  });
}

void History::unpinned(std::int64_t step, std::uint64_t generation) noexcept {
  write("unpin", [&](Json& json) {
    json["step"] = step;
    json["generation"] = generation;
  });
}

void History::interval_picked(std::chrono::duration<double> interval,
                              std::chrono::duration<double> cost) noexcept {
  add("interval", [&](Json& json) {
    json["seconds"] = interval.count();
    json["cost"] = cost.count();
  });
}

}  // namespace engine

std::vector<Value> read_history(const std::filesystem::path& directory) {
  return engine::read_history(*storage::LocalStorage::open_folder(io::real_system(), directory));
}

std::vector<Value> engine::read_history(const storage::Storage& storage) {
  std::string text;
  try {
    const auto source = storage.open(engine::kHistoryName);
    text.resize(source->size());
    source->read(0, std::as_writable_bytes(std::span(text)));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::not_found) throw;
  }
  std::vector<Value> events;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    if (auto event = parse_line(std::string_view(text).substr(begin, end - begin)))
      events.push_back(std::move(*event));
    begin = end + 1;
  }
  return events;
}

}  // namespace perdure
