// What is registered, and its tree. How a tree goes back into it stands in state_loading.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <perdure/state.hpp>

#include "engine/mark_stepped.hpp"
#include "engine/state_loading.hpp"

namespace perdure {

using engine::kRng;
using engine::kStep;

namespace {

void check_name(const std::string& name, const std::vector<TrainingState::Entry>& entries) {
  if (name.empty()) throw Error(ErrorCode::invalid, "the name of a registered object is empty");
  if (name == kStep || name == kRng)
    throw Error(ErrorCode::invalid,
                fmt::format("the name '{}' is one of perdure's own: the state keeps {} by itself; "
                            "take another name",
                            name, name == kStep ? "the step" : "the random number generators"));
  if (std::any_of(entries.begin(), entries.end(),
                  [&](const auto& entry) { return entry.name == name; }))
    throw Error(ErrorCode::invalid, fmt::format("the name '{}' is registered already", name));
}

}  // namespace

void TrainingState::add(std::string name, std::nullptr_t) {
  check_name(name, entries_);
  without_optimizer_ = true;
}

void TrainingState::add_entry(Entry entry) {
  check_name(entry.name, entries_);
  entries_.push_back(std::move(entry));
}

void TrainingState::add_rng(RngKind kind) {
  const bool known = std::any_of(rng_kinds_.begin(), rng_kinds_.end(),
                                 [&](const auto& k) { return k.name == kind.name; });
  if (!known) rng_kinds_.push_back(std::move(kind));
}

void TrainingState::require_optimizer() const {
  const auto has = [&](Role role) {
    return std::find_if(entries_.begin(), entries_.end(),
                        [&](const Entry& entry) { return entry.role == role; });
  };
  const auto module = has(Role::module);
  if (module == entries_.end() || has(Role::optimizer) != entries_.end() || without_optimizer_)
    return;
  throw Error(
      ErrorCode::invalid,
      fmt::format("the state has the module '{}' and no optimizer, so its momentum and learning "
                  "rate would be forgotten: add the optimizer, or say that there is none "
                  "(C++: add(\"optimizer\", nullptr), Python: optimizer=None)",
                  module->name));
}

std::vector<ParameterName> TrainingState::parameter_names() const {
  std::vector<ParameterName> names;
  for (const Entry& entry : entries_) {
    if (!entry.parameters) continue;
    for (ParameterName& parameter : entry.parameters())
      // A tensor that is registered by itself has no name but the entry's.
      names.push_back({parameter.identity,
                       parameter.name.empty() ? entry.name : entry.name + "." + parameter.name});
  }
  return names;
}

Dict TrainingState::state_dict() const {
  require_optimizer();
  if (broken_)
    throw Error(ErrorCode::invalid,
                "the state is a mixture: a restore into it failed half way. Restore it again, or "
                "start anew, before it is saved");
  Dict dict;
  for (const Entry& entry : entries_) dict.set(entry.name, entry.state_dict());
  engine::mark_stepped(dict, entries_);
  dict.set(kStep, step);
  Dict rng;
  for (const RngKind& kind : rng_kinds_) rng.set(kind.name, kind.capture());
  for (const auto& [name, state] : kept_rng_)
    if (!rng.find(name)) rng.set(name, state);
  dict.set(kRng, std::move(rng));
  return dict;
}

std::vector<Shard> TrainingState::shards() const {
  std::vector<Shard> all;
  for (const Entry& entry : entries_) {
    if (!entry.shards) continue;
    for (Shard& shard : entry.shards()) {
      shard.path.insert(shard.path.begin(), Value(entry.name));
      all.push_back(std::move(shard));
    }
  }
  return all;
}

std::map<std::string, CheckpointInfo::Optimizer> TrainingState::optimizers() const {
  std::map<std::string, CheckpointInfo::Optimizer> described;
  const auto names = parameter_names();
  for (const Entry& entry : entries_)
    if (entry.describe) described.emplace(entry.name, entry.describe(names));
  return described;
}

}  // namespace perdure
