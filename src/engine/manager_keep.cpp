// CheckpointManager::pin, retention_plan and prune: what is kept.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <set>
#include <utility>

#include "engine/manager_parts.hpp"
#include "storage/local_storage.hpp"

namespace perdure {
namespace {

std::vector<PlannedCheckpoint> plan_of(engine::RunDirectory& run, const ManagerOptions& options,
                                       engine::Needed needed) {
  for (const auto& [generation, reason] : run.pins())
    needed.emplace(generation, reason.empty() ? "pinned" : "pinned: " + reason);
  std::vector<engine::RunDirectory::Unreadable> unreadable;
  auto plan = engine::plan_retention(run.readable(unreadable), options, needed);
  for (auto& [checkpoint, why] : unreadable)
    plan.push_back({std::move(checkpoint), {"cannot be read: " + why}});
  std::ranges::stable_sort(plan, std::greater(),
                           [](const auto& item) { return item.checkpoint.generation(); });
  return plan;
}

}  // namespace

engine::FoundCheckpoint CheckpointManager::Parts::find_step(std::int64_t step) const {
  const auto all = run.find_all();
  const auto found = std::find_if(all.begin(), all.end(),
                                  [&](const auto& item) { return item.number.step == step; });
  if (found != all.end()) return *found;
  std::set<std::int64_t> steps;
  for (const auto& item : all) steps.insert(item.number.step);
  throw Error(ErrorCode::not_found,
              fmt::format("there is no checkpoint of step {} in '{}'; {}", step, directory.string(),
                          steps.empty() ? "there is none at all"
                                        : fmt::format("there are {}", fmt::join(steps, ", "))));
}

void CheckpointManager::pin(std::int64_t step, const std::string& reason) {
  const auto call = parts_->enter();
  parts_->wait_idle();
  if (!parts_->leads()) return;
  const engine::FoundCheckpoint found = parts_->find_step(step);
  parts_->run.pin(found, reason);
  parts_->history.pinned(step, found.number.generation, reason);
}

void CheckpointManager::unpin(std::int64_t step) {
  const auto call = parts_->enter();
  parts_->wait_idle();
  if (!parts_->leads()) return;
  const engine::FoundCheckpoint found = parts_->find_step(step);
  parts_->run.unpin(found);
  parts_->history.unpinned(step, found.number.generation);
}

std::vector<PlannedCheckpoint> CheckpointManager::retention_plan() const {
  const auto look = parts_->look();
  return parts_->plan();
}

std::vector<PlannedCheckpoint> CheckpointManager::prune() {
  const auto call = parts_->enter();
  parts_->wait_idle();
  return parts_->leads() ? parts_->prune() : retention_plan();
}

std::vector<PlannedCheckpoint> CheckpointManager::Parts::plan() {
  engine::Needed needed;
  if (restored_from != 0) needed.emplace(restored_from, "restored from");
  return plan_of(run, options, std::move(needed));
}

std::vector<PlannedCheckpoint> CheckpointManager::Parts::prune() {
  std::vector<PlannedCheckpoint> done;
  {
    const std::lock_guard guard(mutex);
    // Of a process that was killed, the kernel may hold what it had in flight, and so the lock of
    // its temporary file, a moment longer than the process: it is found here if not at the start.
    storage->collect_debris();
    done = plan();
    run.prune(engine::prunable(done));
  }
  history.pruned(done);
  return done;
}

std::vector<PlannedCheckpoint> retention_plan(const std::filesystem::path& directory,
                                              const ManagerOptions& options) {
  engine::RunDirectory run(storage::LocalStorage::open_folder(io::real_system(), directory));
  return plan_of(run, options, {});
}

}  // namespace perdure
