#include "engine/state_loading.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "engine/key_prefix.hpp"
#include "engine/live_read.hpp"

namespace perdure {
namespace {

using engine::kRng;
using engine::kStep;

const Value* find(const Dict& dict, std::string_view key) { return dict.find(Value(key)); }

const Dict& dict_of(const Value& value) {
  if (value.is_mapping()) return value.as_dict();
  throw Error(ErrorCode::invalid,
              fmt::format("the file holds a {}, not a dict with a key for each registered name",
                          kind_name(value.kind())));
}

// An Error that `action` throws is a line, too.
template <class Action>
void collect(Problems& problems, Action&& action) {
  try {
    action(problems);
  } catch (const Error& error) {
    problems.emplace_back(error.what());
  }
}

// Whoever cannot give its state may still be able to take one.
Value own_of(const TrainingState::Entry& entry) {
  try {
    return entry.live();
  } catch (const Error&) {
    return {};
  }
}

bool is_state_dict_of_a_module(const Dict& file) {
  return !file.empty() && std::all_of(file.begin(), file.end(), [](const auto& item) {
    return item.second.kind() == Kind::tensor;
  });
}

}  // namespace

TrainingState::Loading::Loading(const TrainingState& state, const Value& value,
                                const Optimizers& recorded, bool strict)
    : state_(state),
      file_(dict_of(value)),
      recorded_(recorded),
      names_(state.parameter_names()),
      strict_(strict) {
  for (const Entry& entry : state.entries_) {
    if (const Value* found = find(file_, entry.name))
      taken_.push_back({&entry, *found});
    else
      lacks(entry.name + ": registered, but not in the file");
  }
  find_untaken();
  find_step();
  find_rng(state.rng_kinds_);
}

void TrainingState::Loading::lacks(std::string line) {
  if (!strict_) return;
  problems_.push_back(std::move(line));
  one_sided_ = true;
}

void TrainingState::Loading::find_untaken() {
  for (const auto& [key, value] : file_) {
    const std::string name = key.kind() == Kind::string ? key.as_string() : repr(key);
    const auto& entries = state_.entries_;
    const bool taken = key.kind() == Kind::string &&
                       (name == kStep || name == kRng ||
                        std::any_of(entries.begin(), entries.end(),
                                    [&](const auto& entry) { return entry.name == name; }));
    if (!taken) lacks(name + ": in the file, but nothing is registered to take it");
  }
}

void TrainingState::Loading::find_step() {
  const Value* found = find(file_, kStep);
  if (!found) return lacks("step: the file has none");
  try {
    step = found->as_int();
  } catch (const Error& error) {
    problems_.push_back(fmt::format("step: {}", error.what()));
  }
}

// Kinds of another language ("python" in a C++ program) are no problem on either side; those of the
// file are kept.
void TrainingState::Loading::find_rng(const std::vector<RngKind>& kinds) {
  const Value* states = find(file_, kRng);
  if (!states) {
    if (!kinds.empty()) lacks("rng: the file has no states of random number generators");
    return;
  }
  if (!states->is_mapping()) {
    problems_.push_back(
        fmt::format("rng: a {} in the file, not a dict", kind_name(states->kind())));
    return;
  }
  for (const auto& [key, state] : states->as_dict()) {
    const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& candidate) {
      return key.kind() == Kind::string && key.as_string() == candidate.name;
    });
    if (kind == kinds.end())
      kept_rng.set(key, state);
    else
      rng.emplace_back(&*kind, state);
  }
}

Value TrainingState::Loading::wanted_first(bool all) const {
  Value::Items wanted;
  for (const Taken& taken : taken_)
    if (all || !taken.entry->live) wanted.push_back(taken.in_file);
  if (const Value* states = find(file_, kRng)) wanted.push_back(*states);
  return Value::list(std::move(wanted));
}

void TrainingState::Loading::align() {
  const CheckpointInfo::Optimizer unknown;
  for (Taken& taken : taken_) {
    taken.value = taken.in_file;
    if (!taken.entry->align) continue;
    const auto record = recorded_.find(taken.entry->name);
    collect(taken.problems, [&](Problems& found) {
      Problems notes;
      taken.value = taken.entry->align(
          taken.in_file,
          {record == recorded_.end() ? unknown : record->second, names_, strict_, found, notes});
      for (const std::string& line : notes) notes_.push_back(taken.entry->name + ": " + line);
    });
  }
}

void TrainingState::Loading::check() {
  for (Taken& taken : taken_) {
    const Entry& entry = *taken.entry;
    if (taken.problems.empty() && entry.check)
      collect(taken.problems, [&](Problems& found) { entry.check(taken.value, found); });
    if (taken.problems.empty() || entry.role != Role::module) continue;
    if (const std::string hint = engine::prefix_hint(taken.in_file, entry.state_dict());
        !hint.empty())
      taken.problems.push_back(hint);
  }
}

void TrainingState::Loading::throw_problems() const {
  Problems all;
  for (const Taken& taken : taken_)
    for (const std::string& line : taken.problems) all.push_back(taken.entry->name + ": " + line);
  all.insert(all.end(), problems_.begin(), problems_.end());
  if (all.empty()) return;
  std::string text = fmt::format("the file does not fit this state, and nothing was changed:\n  {}",
                                 fmt::join(all, "\n  "));
  if (is_state_dict_of_a_module(file_))
    text +=
        "\nThe file looks like the state_dict of a single module: load() it and give it to the "
        "module itself.";
  else if (one_sided_)
    text += "\nRegister what is missing, or say strict=false to skip what only one side has.";
  throw Error(ErrorCode::invalid, text);
}

void TrainingState::load_state_dict(
    const Value& value, const std::map<std::string, CheckpointInfo::Optimizer>& recorded,
    bool strict) {
  require_optimizer();
  Loading loading(*this, value, recorded, strict);
  loading.align();
  loading.check();
  loading.throw_problems();
  put(loading);
}

void TrainingState::restore(const CheckpointFile& file, bool strict,
                            const CheckpointFile::Allocate& allocate) {
  require_optimizer();
  const Loading::Optimizers recorded =
      file.info() ? file.info()->optimizers : Loading::Optimizers{};
  Loading loading(*this, file.value(), recorded, strict);
  // A restore that failed half way is mended by one that writes all of it, which a lenient one may
  // not do: so that one never gets half way.
  const bool in_place = strict && file.reads_in_place();
  file.read_all(loading.wanted_first(!in_place), allocate);
  loading.align();
  engine::LiveRead live(file);
  if (in_place)
    for (const Loading::Taken& taken : loading.taken())
      if (taken.entry->live)
        live.add(taken.value, own_of(*taken.entry), taken.entry->role == Role::optimizer);
  live.read_aside(allocate);
  loading.check();
  loading.throw_problems();
  if (live.has_live()) broken_ = true;
  live.read_live();
  for (const auto& storage : file.storages()) storage->may_be_kept = storage->owner != nullptr;
  put(loading);
}

void TrainingState::put(Loading& loading) {
  broken_ = true;  // until all of it is done
  notes_ = loading.notes();
  for (const Loading::Taken& taken : loading.taken()) taken.entry->load_state_dict(taken.value);
  if (loading.step) step = *loading.step;
  kept_rng_ = std::move(loading.kept_rng);
  // Last: loading may itself have drawn random numbers.
  for (const auto& [kind, state] : loading.rng) kind->restore(state);
  broken_ = false;
}

}  // namespace perdure
