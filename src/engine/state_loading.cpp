#include "engine/state_loading.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "engine/explanation.hpp"
#include "engine/key_match.hpp"
#include "engine/live_read.hpp"
#include "engine/renamed_keys.hpp"
#include "engine/shard_cut.hpp"

namespace perdure {
namespace {

using engine::kRng;
using engine::kStep;
using engine::Mismatch;
using engine::Side;

const Value* find(const Dict& dict, std::string_view key) { return dict.find(Value(key)); }

const Dict& dict_of(const Value& value) {
  if (value.is_mapping()) return value.as_dict();
  throw Error(ErrorCode::invalid,
              fmt::format("the file holds a {}, not a dict with a key for each registered name",
                          kind_name(value.kind())));
}

// An Error that `action` throws is a line, too.
template <class Action>
void collect(Problems& problems, Action&& action, const std::string& front = "") {
  try {
    action(problems);
  } catch (const Error& error) {
    problems.emplace_back(front + error.what());
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

std::vector<std::string> names_of(const std::vector<TrainingState::Entry>& entries) {
  std::vector<std::string> names;
  for (const TrainingState::Entry& entry : entries) names.push_back(entry.name);
  return names;
}

using Optimizers = std::map<std::string, CheckpointInfo::Optimizer>;

// What a file recorded of its optimizers, under the names that entries and parameters have here.
Optimizers own_names(const Optimizers& recorded, const engine::Renaming& renaming,
                     const std::vector<ParameterName>& own) {
  std::unordered_set<std::string> known;
  std::unordered_map<std::string, std::string> unwrapped;
  for (const ParameterName& name : own) {
    known.insert(name.name);
    unwrapped.emplace(engine::without_wrappers(name.name), name.name);
  }
  const auto here = [&](const std::string& in_file) {
    std::string name = renaming.rename(in_file);
    if (known.contains(name)) return name;
    const auto found = unwrapped.find(engine::without_wrappers(name));
    return found == unwrapped.end() ? name : found->second;
  };
  Optimizers result;
  for (const auto& [entry, optimizer] : recorded) {
    CheckpointInfo::Optimizer& named = result[renaming.rename(entry)] = optimizer;
    for (auto& group : named.param_names) std::ranges::transform(group, group.begin(), here);
  }
  return result;
}

}  // namespace

TrainingState::Loading::Loading(const TrainingState& state, const Value& value,
                                const Optimizers& recorded, const MatchOptions& options)
    : state_(state),
      options_(options),
      selection_(options.only),
      renaming_(options.rename),
      file_(renaming_.apply(dict_of(value), names_of(state.entries_))),
      names_(state.parameter_names()),
      recorded_(own_names(recorded, renaming_, names_)) {
  for (const Entry& entry : state.entries_) take(entry);
  find_untaken();
  find_step();
  find_rng(state.rng_kinds_);
  if (!selection_.all()) selection_.require_found(engine::names_in(file_), names_here());
  if (!misfits_.empty()) find_renamed_entries();
}

void TrainingState::Loading::take(const Entry& entry) {
  const Value* found = find(file_, entry.name);
  if (!entry.structure) return take_whole(entry, found);
  Value own;
  collect(problems_, [&](Problems&) { own = entry.structure(); }, entry.name + ": ");
  if (!own.is_mapping()) return take_whole(entry, found);
  structures_.emplace_back(&entry, own);
  take_keys(entry, found, own.as_dict());
}

void TrainingState::Loading::take_whole(const Entry& entry, const Value* found) {
  if (!selection_.takes_whole(entry.name, Side::here)) return;
  if (found == nullptr) return add({Mismatch::missing, entry.name, "-", "registered"});
  selection_.takes_whole(entry.name, Side::file);
  taken_.push_back(taken_by(entry, *found));
}

TrainingState::Loading::Taken TrainingState::Loading::taken_by(const Entry& entry, Value in_file) {
  return {.entry = &entry,
          .in_file = std::move(in_file),
          .shards = entry.shards ? entry.shards() : std::vector<Shard>()};
}

// Patterns may take only some of the keys.
bool TrainingState::Loading::is_selected(const std::string& entry, const Dict& own) {
  bool selected = selection_.takes(entry, Side::here) || selection_.takes(entry + ".", Side::here);
  if (selection_.all()) return true;
  for (const auto& [key, value] : own)
    selected |= selection_.takes(engine::name_of(entry, key), Side::here);
  return selected;
}

void TrainingState::Loading::take_keys(const Entry& entry, const Value* found, const Dict& own) {
  if (!is_selected(entry.name, own)) return;
  if (found == nullptr) return add({Mismatch::missing, entry.name, "-", "a module"});
  selection_.takes(entry.name, Side::file);
  selection_.takes(entry.name + ".", Side::file);
  if (!found->is_mapping()) {
    problems_.push_back(fmt::format("{}: {} in the file, the state_dict of a module is wanted",
                                    entry.name, engine::describe(*found)));
    return;
  }
  engine::KeyMatch match =
      engine::match_keys(entry.name, found->as_dict(), own, options_.cast, selection_);
  for (engine::Misfit& misfit : match.misfits) add(std::move(misfit));
  if (!options_.strict && match.matched == 0 && !own.empty())
    problems_.push_back(
        fmt::format("{}: none of its keys is in the file{}", entry.name,
                    engine::what_there_is(engine::name_of(entry.name, own.begin()->first),
                                          engine::names_in(found->as_dict()))));
  taken_.push_back(taken_by(entry, std::move(match.value)));
}

// What only one side has is skipped where that is asked for; what does not fit never is.
void TrainingState::Loading::add(engine::Misfit misfit) {
  const bool one_sided = misfit.what == Mismatch::missing || misfit.what == Mismatch::unexpected;
  (one_sided && !options_.strict ? skipped_ : misfits_).push_back(std::move(misfit));
}

void TrainingState::Loading::find_untaken() {
  for (const auto& [key, value] : file_) {
    const std::string name = key.kind() == Kind::string ? key.as_string() : repr(key);
    const auto& entries = state_.entries_;
    const bool known = key.kind() == Kind::string &&
                       (name == kStep || name == kRng ||
                        std::any_of(entries.begin(), entries.end(),
                                    [&](const auto& entry) { return entry.name == name; }));
    if (!known && selection_.takes(name, Side::file))
      add({Mismatch::unexpected, name, engine::describe(value),
           std::string(engine::kNotRegistered)});
  }
}

void TrainingState::Loading::find_step() {
  if (!selection_.takes_whole(std::string(kStep), Side::here)) return;
  const Value* found = find(file_, kStep);
  if (!found) return add({Mismatch::missing, std::string(kStep), "-", "the number of steps"});
  selection_.takes_whole(std::string(kStep), Side::file);
  collect(problems_, [&](Problems&) { step = found->as_int(); }, "step: ");
}

// Kinds of another language ("python" in a C++ program) are no problem on either side; those of the
// file are kept.
void TrainingState::Loading::find_rng(const std::vector<RngKind>& kinds) {
  if (!selection_.takes_whole(std::string(kRng), Side::here)) return;
  kept_rng.emplace();
  const Value* states = find(file_, kRng);
  if (!states) {
    if (!kinds.empty())
      add({Mismatch::missing, std::string(kRng), "-", "random number generators"});
    return;
  }
  selection_.takes_whole(std::string(kRng), Side::file);
  if (!states->is_mapping()) {
    problems_.push_back(fmt::format("rng: {} in the file, not a dict", engine::describe(*states)));
    return;
  }
  for (const auto& [key, state] : states->as_dict()) {
    const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& candidate) {
      return key.kind() == Kind::string && key.as_string() == candidate.name;
    });
    if (kind == kinds.end())
      kept_rng->set(key, state);
    else
      rng.emplace_back(&*kind, state);
  }
}

// A module that the file lacks may be there under another name, or be all of the file.
void TrainingState::Loading::find_renamed_entries() {
  for (const auto& [entry, own] : structures_) {
    if (find(file_, entry->name) != nullptr) continue;
    if (auto rule = engine::rule_for_entry(entry->name, own.as_dict(), file_))
      entry_rules_.push_back(std::move(*rule));
  }
}

std::vector<std::string> TrainingState::Loading::names_here() const {
  std::vector<std::string> names = names_of(state_.entries_);
  names.emplace_back(kStep);
  names.emplace_back(kRng);
  for (const auto& [entry, own] : structures_)
    for (const auto& [key, value] : own.as_dict())
      names.push_back(engine::name_of(entry->name, key));
  return names;
}

std::vector<std::string> TrainingState::Loading::fitting_names() const {
  std::vector<std::string> names;
  for (const Taken& taken : taken_)
    if (taken.entry->structure && taken.in_file.is_mapping())
      for (const auto& [key, value] : taken.in_file.as_dict())
        names.push_back(engine::name_of(taken.entry->name, key));
  return names;
}

Value TrainingState::Loading::wanted_first(bool all) const {
  Value::Items wanted;
  for (const Taken& taken : taken_)
    if (taken.shards.empty() && (all || !taken.entry->live)) wanted.push_back(taken.in_file);
  const Value* states = find(file_, kRng);
  if (states != nullptr && kept_rng) wanted.push_back(*states);
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
      taken.value =
          taken.entry->align(taken.in_file, {record == recorded_.end() ? unknown : record->second,
                                             names_, options_.strict, found, notes});
      for (const std::string& line : notes) notes_.push_back(taken.entry->name + ": " + line);
    });
  }
}

void TrainingState::Loading::cut(const CheckpointFile& file) {
  for (Taken& taken : taken_)
    if (!taken.shards.empty())
      taken.value = engine::cut_shards(taken.value, taken.shards, file, taken.problems);
}

Value TrainingState::Loading::cut_values() const {
  Value::Items values;
  for (const Taken& taken : taken_)
    if (!taken.shards.empty()) values.push_back(taken.value);
  return Value::list(std::move(values));
}

void TrainingState::Loading::check() {
  for (Taken& taken : taken_)
    if (taken.problems.empty() && taken.entry->check)
      collect(taken.problems, [&](Problems& found) { taken.entry->check(taken.value, found); });
}

void TrainingState::Loading::throw_problems() const {
  Problems lines = problems_;
  for (const Taken& taken : taken_)
    for (const std::string& problem : taken.problems)
      lines.push_back(taken.entry->name + ": " + problem);
  if (lines.empty() && misfits_.empty()) return;
  std::string text = "the file does not fit this state, and nothing was changed:";
  text += engine::explain(misfits_, {.fitting = fitting_names(),
                                     .entry_rules = entry_rules_,
                                     .lines = std::move(lines),
                                     .cast = options_.cast});
  throw Error(ErrorCode::invalid, text);
}

Problems TrainingState::Loading::notes() const {
  Problems notes = notes_;
  if (!skipped_.empty())
    notes.push_back("the restore has skipped what only one side has:" + engine::table_of(skipped_));
  return notes;
}

bool TrainingState::Loading::is_whole() const {
  return options_.only.empty() && notes_.empty() &&
         std::ranges::none_of(skipped_, [](const engine::Misfit& misfit) {
           return misfit.what == Mismatch::missing;
         });
}

void TrainingState::load_state_dict(
    const Value& value, const std::map<std::string, CheckpointInfo::Optimizer>& recorded,
    const MatchOptions& options) {
  require_optimizer();
  Loading loading(*this, value, recorded, options);
  loading.align();
  loading.check();
  loading.throw_problems();
  put(loading);
}

void TrainingState::restore(const CheckpointFile& file, const MatchOptions& options,
                            const CheckpointFile::Allocate& allocate) {
  require_optimizer();
  const Loading::Optimizers recorded =
      file.info() ? file.info()->optimizers : Loading::Optimizers{};
  Loading loading(*this, file.value(), recorded, options);
  // A restore that failed half way is mended by one that writes all of it, which one of less may
  // not do: so that one never gets half way.
  const bool in_place = options.strict && options.only.empty() && file.reads_in_place();
  file.read_all(loading.wanted_first(!in_place), allocate);
  loading.align();
  loading.cut(file);
  if (!in_place) file.read_all(loading.cut_values(), allocate);
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
  const bool was_broken = broken_;
  broken_ = true;  // until all of it is done
  notes_ = loading.notes();
  for (const Loading::Taken& taken : loading.taken()) {
    try {
      taken.entry->load_state_dict(taken.value);
    } catch (const Error& error) {
      throw Error(error.code(),
                  fmt::format("\"{}\" could not take its state from the file: {}\nThe state is a "
                              "mixture now: restore it again, or start anew, before it is saved",
                              taken.entry->name, error.what()),
                  error.errno_value());
    }
  }
  if (loading.step) step = *loading.step;
  if (loading.kept_rng) kept_rng_ = std::move(*loading.kept_rng);
  // Last: loading may itself have drawn random numbers.
  for (const auto& [kind, state] : loading.rng) kind->restore(state);
  broken_ = was_broken && !loading.is_whole();
}

}  // namespace perdure
