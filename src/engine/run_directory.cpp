#include "engine/run_directory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "engine/file_pool.hpp"
#include "format/ranks_json.hpp"
#include "format/utf8.hpp"

namespace perdure::engine {
namespace {

constexpr std::string_view kPinned = ".pin";
constexpr std::uint64_t kMaxReason = 1000;

std::uint64_t highest_in(const CheckpointInfo& info) {
  std::uint64_t highest = 0;
  for (const std::uint64_t generation : {info.generation, info.parent})
    if (generation <= kMaxGeneration) highest = std::max(highest, generation);
  return highest;
}

}  // namespace

Checkpoint describe(const storage::Storage& storage, const FoundCheckpoint& found,
                    const CheckpointFile& file) {
  Checkpoint checkpoint{storage.describe(found.name), file.size(),
                        file.info().value_or(CheckpointInfo{})};
  checkpoint.info.step = found.number.step;
  checkpoint.info.generation = found.number.generation;
  return checkpoint;
}

CheckpointFile open_checkpoint(const storage::Storage& storage, const FoundCheckpoint& found,
                               bool allow_opaque) {
  if (!found.number.of_ranks) return CheckpointFile::open(storage.open(found.name), allow_opaque);
  // It has appeared with all its files: while it is there, what is missing in it is damage.
  const std::string path = storage.describe(found.name);
  std::string missing;
  try {
    const auto files = FilePool::open(path);
    for (const char* name : {".metadata", format::kRanksName})
      if (!files->has(name)) missing = fmt::format("'{}' is missing", files->path_of(name));
    if (missing.empty()) return CheckpointFile::open(path, allow_opaque);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::not_found) throw;
    missing = error.what();
  }
  const auto entries = storage.list();
  const bool is_there =
      std::ranges::any_of(entries, [&](const auto& entry) { return entry.name == found.name; });
  throw Error(is_there ? ErrorCode::corrupt : ErrorCode::not_found, missing);
}

void RunDirectory::scan() {
  for (const auto& entry : storage_->list()) use_generation(generation_in(entry.name));
  std::vector<Unreadable> told_to_who_restores;
  readable(told_to_who_restores);
}

std::vector<FoundCheckpoint> RunDirectory::find_all() const {
  std::vector<FoundCheckpoint> found;
  for (const auto& entry : storage_->list())
    if (const auto number = parse_checkpoint_name(entry.name);
        number && number->of_ranks == entry.is_directory)
      found.push_back({entry.name, *number, entry.size});
  std::sort(found.begin(), found.end(), [](const FoundCheckpoint& a, const FoundCheckpoint& b) {
    return std::pair(a.number.generation, a.number.step) >
           std::pair(b.number.generation, b.number.step);
  });
  return found;
}

std::vector<FoundCheckpoint> RunDirectory::find() const {
  auto found = find_all();
  std::erase_if(found, [&](const FoundCheckpoint& item) { return damaged_.contains(item.name); });
  return found;
}

std::vector<std::string> RunDirectory::set_aside_names() const {
  std::vector<std::string> names;
  for (const auto& entry : storage_->list())
    if (parse_damaged_name(entry.name)) names.push_back(storage_->describe(entry.name));
  std::sort(names.begin(), names.end());
  return names;
}

std::map<std::uint64_t, std::string> RunDirectory::pins() const {
  std::map<std::uint64_t, std::string> pins;
  for (const auto& entry : storage_->list()) {
    if (entry.is_directory || !entry.name.ends_with(kPinned)) continue;
    const auto number = parse_checkpoint_name(
        std::string_view(entry.name).substr(0, entry.name.size() - kPinned.size()));
    if (!number) continue;
    std::string reason(std::min(entry.size, kMaxReason), '\0');
    try {
      storage_->open(entry.name)->read(0, std::as_writable_bytes(std::span(reason)));
    } catch (const Error&) {
      reason.clear();  // that it is there is what counts
    }
    while (reason.ends_with('\n')) reason.pop_back();
    if (!format::is_strict_utf8(reason)) reason.clear();
    pins[number->generation] = std::move(reason);
  }
  return pins;
}

void RunDirectory::pin(const FoundCheckpoint& found, const std::string& reason) {
  if (reason.size() > kMaxReason || reason.find('\n') != std::string::npos)
    throw Error(ErrorCode::invalid,
                fmt::format("the reason of a pin is one line of at most {} bytes", kMaxReason));
  const std::string text = reason + "\n";
  const auto file =
      storage_->create(found.name + std::string(kPinned), text.size(), storage::IfExists::replace);
  file->append(std::as_bytes(std::span(text)));
  file->commit();
}

void RunDirectory::unpin(const FoundCheckpoint& found) {
  storage_->remove({found.name + std::string(kPinned)});
}

// Only the structure and the record are read here, not the tensors: allow_opaque, because what
// nobody loads now need not be loadable.
Checkpoint RunDirectory::read(const FoundCheckpoint& found) {
  const auto known = read_.find(found.name);
  if (known != read_.end() && (found.number.of_ranks || known->second.size == found.size))
    return known->second;
  try {
    const CheckpointFile file = open_checkpoint(*storage_, found, true);
    if (file.info()) use_generation(highest_in(*file.info()));
    return read_.insert_or_assign(found.name, describe(*storage_, found, file)).first->second;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::corrupt) damaged_.insert(found.name);
    throw;
  }
}

std::vector<Checkpoint> RunDirectory::checkpoints() {
  std::vector<Checkpoint> checkpoints;
  for (const FoundCheckpoint& found : find()) {
    try {
      checkpoints.push_back(read(found));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt && error.code() != ErrorCode::not_found) throw;
    }
  }
  return checkpoints;
}

std::vector<Checkpoint> RunDirectory::readable(std::vector<Unreadable>& others) {
  std::vector<Checkpoint> checkpoints;
  for (const FoundCheckpoint& found : find_all()) {
    Unreadable item{{storage_->describe(found.name), found.size, {}}, "it is damaged"};
    item.checkpoint.info.step = found.number.step;
    item.checkpoint.info.generation = found.number.generation;
    try {
      if (!damaged_.contains(found.name)) {
        checkpoints.push_back(read(found));
        continue;
      }
    } catch (const Error& error) {
      if (error.code() == ErrorCode::not_found) continue;
      item.why = error.what();
    }
    others.push_back(std::move(item));
  }
  return checkpoints;
}

std::optional<Checkpoint> RunDirectory::newest() {
  for (const FoundCheckpoint& found : find()) {
    try {
      return read(found);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt && error.code() != ErrorCode::not_found) throw;
    }
  }
  return std::nullopt;
}

std::string RunDirectory::set_aside(const FoundCheckpoint& found) {
  const auto entries = storage_->list();
  const auto taken = [&](const std::string& name) {
    return std::any_of(entries.begin(), entries.end(),
                       [&](const auto& entry) { return entry.name == name; });
  };
  std::string name = found.name + ".damaged";
  for (int i = 2; taken(name); ++i) name = fmt::format("{}.damaged-{}", found.name, i);
  storage_->rename(found.name, name);
  read_.erase(found.name);
  damaged_.erase(found.name);
  return storage_->describe(name);
}

std::uint64_t RunDirectory::next_generation() const {
  if (highest_used_ >= kMaxGeneration)
    throw Error(
        ErrorCode::invalid,
        fmt::format("no generation is left in '{}': the highest is {}; move the file with it "
                    "away",
                    storage_->describe(""), highest_used_));
  return highest_used_ + 1;
}

void RunDirectory::use_generation(std::uint64_t generation) {
  highest_used_ = std::max(highest_used_, generation);
}

void RunDirectory::add(const Checkpoint& checkpoint, const std::string& name) {
  read_.insert_or_assign(name, checkpoint);
  use_generation(checkpoint.generation());
}

void RunDirectory::prune(const std::vector<std::uint64_t>& generations) {
  std::vector<std::string> names;
  for (const FoundCheckpoint& found : find())
    if (std::find(generations.begin(), generations.end(), found.number.generation) !=
        generations.end())
      names.push_back(found.name);
  storage_->remove(names);
  for (const std::string& name : names) read_.erase(name);
}

}  // namespace perdure::engine
