#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <perdure/state.hpp>

#include "engine/key_prefix.hpp"
#include "engine/mark_stepped.hpp"

namespace perdure {
namespace {

constexpr std::string_view kStep = "step";
constexpr std::string_view kRng = "rng";

const Value* find(const Dict& dict, std::string_view key) { return dict.find(Value(key)); }

// One load: everything is looked at and put here first, so that nothing is changed where anything
// does not fit.
struct Loading {
  bool strict = true;
  Problems problems;
  bool one_sided = false;  // strict=false would help with some of them
  std::vector<std::pair<const TrainingState::Entry*, Value>> entries;
  std::optional<std::int64_t> step;
  std::vector<std::pair<const TrainingState::RngKind*, Value>> rng;
  Dict kept_rng;

  void lacks(std::string line) {
    if (!strict) return;
    problems.push_back(std::move(line));
    one_sided = true;
  }
};

// Puts "name: " before each line that `action` adds; an Error that it throws is a line, too.
template <class Action>
void collect(const std::string& name, Problems& problems, Action&& action) {
  Problems found;
  try {
    action(found);
  } catch (const Error& error) {
    found.emplace_back(error.what());
  }
  for (const std::string& line : found) problems.push_back(name + ": " + line);
}

void check_entry(const TrainingState::Entry& entry, const Value& in_file,
                 const std::map<std::string, CheckpointInfo::Optimizer>& recorded,
                 const std::vector<ParameterName>& names, Loading& loading) {
  const auto record = recorded.find(entry.name);
  const std::size_t before = loading.problems.size();
  Value value = in_file;
  collect(entry.name, loading.problems, [&](Problems& found) {
    if (entry.align)
      value = entry.align(in_file,
                          record == recorded.end() ? CheckpointInfo::Optimizer{} : record->second,
                          names, found);
    if (found.empty() && entry.check) entry.check(value, found);
  });
  if (loading.problems.size() == before) {
    loading.entries.emplace_back(&entry, std::move(value));
  } else if (entry.role == Role::module) {
    if (const std::string hint = engine::prefix_hint(in_file, entry.state_dict()); !hint.empty())
      loading.problems.push_back(entry.name + ": " + hint);
  }
}

void check_step(const Dict& file, Loading& loading) {
  const Value* step = find(file, kStep);
  if (!step) return loading.lacks("step: the file has none");
  collect("step", loading.problems, [&](Problems&) { loading.step = step->as_int(); });
}

// Kinds of another language ("python" in a C++ program) are no problem on either side; those of the
// file are kept.
void check_rng(const Dict& file, const std::vector<TrainingState::RngKind>& kinds,
               Loading& loading) {
  const Value* states = find(file, kRng);
  if (!states) {
    if (!kinds.empty()) loading.lacks("rng: the file has no states of random number generators");
    return;
  }
  if (!states->is_mapping()) {
    loading.problems.push_back(
        fmt::format("rng: a {} in the file, not a dict", kind_name(states->kind())));
    return;
  }
  for (const auto& [key, state] : states->as_dict()) {
    const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& candidate) {
      return key.kind() == Kind::string && key.as_string() == candidate.name;
    });
    if (kind == kinds.end())
      loading.kept_rng.set(key, state);
    else
      loading.rng.emplace_back(&*kind, state);
  }
}

void check_untaken(const Dict& file, const std::vector<TrainingState::Entry>& entries,
                   Loading& loading) {
  for (const auto& [key, value] : file) {
    const std::string name = key.kind() == Kind::string ? key.as_string() : repr(key);
    const bool taken = key.kind() == Kind::string &&
                       (name == kStep || name == kRng ||
                        std::any_of(entries.begin(), entries.end(),
                                    [&](const auto& entry) { return entry.name == name; }));
    if (!taken) loading.lacks(name + ": in the file, but nothing is registered to take it");
  }
}

bool is_state_dict_of_a_module(const Dict& file) {
  return !file.empty() && std::all_of(file.begin(), file.end(), [](const auto& item) {
    return item.second.kind() == Kind::tensor;
  });
}

[[noreturn]] void throw_problems(const Loading& loading, const Dict& file) {
  std::string text = fmt::format("the file does not fit this state, and nothing was changed:\n  {}",
                                 fmt::join(loading.problems, "\n  "));
  if (is_state_dict_of_a_module(file))
    text +=
        "\nThe file looks like the state_dict of a single module: load() it and give it to the "
        "module itself.";
  else if (loading.one_sided)
    text += "\nRegister what is missing, or say strict=false to skip what only one side has.";
  throw Error(ErrorCode::invalid, text);
}

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

std::map<std::string, CheckpointInfo::Optimizer> TrainingState::optimizers() const {
  std::map<std::string, CheckpointInfo::Optimizer> described;
  const auto names = parameter_names();
  for (const Entry& entry : entries_)
    if (entry.describe) described.emplace(entry.name, entry.describe(names));
  return described;
}

void TrainingState::load_state_dict(
    const Value& value, const std::map<std::string, CheckpointInfo::Optimizer>& recorded,
    bool strict) {
  require_optimizer();
  if (!value.is_mapping())
    throw Error(ErrorCode::invalid,
                fmt::format("the file holds a {}, not a dict with a key for each registered name",
                            kind_name(value.kind())));
  const Dict& file = value.as_dict();
  const auto names = parameter_names();
  Loading loading;
  loading.strict = strict;
  for (const Entry& entry : entries_) {
    if (const Value* found = find(file, entry.name))
      check_entry(entry, *found, recorded, names, loading);
    else
      loading.lacks(entry.name + ": registered, but not in the file");
  }
  check_untaken(file, entries_, loading);
  check_step(file, loading);
  check_rng(file, rng_kinds_, loading);
  if (!loading.problems.empty()) throw_problems(loading, file);

  broken_ = true;  // until all of it is done
  for (const auto& [entry, entry_value] : loading.entries) entry->load_state_dict(entry_value);
  if (loading.step) step = *loading.step;
  kept_rng_ = std::move(loading.kept_rng);
  // Last: loading may itself have drawn random numbers.
  for (const auto& [kind, state] : loading.rng) kind->restore(state);
  broken_ = false;
}

}  // namespace perdure
