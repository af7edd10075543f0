#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <functional>
#include <perdure/async_saver.hpp>
#include <perdure/checkpoint_manager.hpp>
#include <perdure/optimizer_match.hpp>

#include "bindings.hpp"
#include "entry_encoder.hpp"
#include "object_owner.hpp"
#include "store_ranks.hpp"
#include "tensor_encoder.hpp"

namespace nb = nanobind;

namespace perdure::python {

namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

// Python's side of an Entry, where out-parameters are return values and parameter identities are
// numbers.
using Names = std::vector<std::pair<std::uintptr_t, std::string>>;
using OptimizerInfo = CheckpointInfo::Optimizer;
using Check = std::function<Problems(const Value&)>;
using Parameters = std::function<Names()>;
using Describe = std::function<OptimizerInfo(const Names&)>;
using Aligned = std::tuple<Value, Problems, Problems>;  // problems, notes
using Align = std::function<Aligned(const Value&, const OptimizerInfo&, const Names&, bool strict)>;

Names to_python(const std::vector<ParameterName>& names) {
  Names out;
  for (const auto& [identity, name] : names)
    out.emplace_back(reinterpret_cast<std::uintptr_t>(identity), name);
  return out;
}

std::vector<ParameterName> from_python(const Names& names) {
  std::vector<ParameterName> out;
  for (const auto& [identity, name] : names)
    out.push_back({reinterpret_cast<const void*>(identity), name});
  return out;
}

void append(Problems& problems, const Problems& more) {
  problems.insert(problems.end(), more.begin(), more.end());
}

std::function<void(const Value&, Problems&)> entry_check(Check check) {
  if (!check) return {};
  return [check](const Value& value, Problems& problems) { append(problems, check(value)); };
}

decltype(TrainingState::Entry::align) entry_align(Align align) {
  if (!align) return {};
  return [align](const Value& value, const Alignment& alignment) {
    const auto [aligned, problems, notes] =
        align(value, alignment.recorded, to_python(alignment.names), alignment.strict);
    append(alignment.problems, problems);
    append(alignment.notes, notes);
    return aligned;
  };
}

// Per group: its options, and names, own name and shape of each parameter.
using Outline =
    std::vector<std::pair<Value, std::vector<std::tuple<std::vector<std::string>, std::string,
                                                        std::vector<std::int64_t>>>>>;

Aligned match(std::string class_name, Outline outline, std::function<Value(std::size_t)> state,
              const Value& in_file, const OptimizerInfo& recorded, bool strict) {
  OptimizerOutline own{
      .class_name = std::move(class_name), .groups = {}, .state = std::move(state)};
  for (auto& [options, params] : outline) {
    auto& group = own.groups.emplace_back(options.as_dict());
    for (auto& [names, own_name, shape] : params)
      group.params.push_back({std::move(names), std::move(own_name), std::move(shape)});
  }
  Problems problems, notes;
  const Value aligned = match_optimizer(own, in_file, {recorded, {}, strict, problems, notes});
  return {aligned, problems, notes};
}

// What the encoder of a module or optimizer tells by itself, without a list made in Python.
// Whoever drops the entry last need not hold the lock of the interpreter: a close() may be.
void ask_encoder(TrainingState::Entry& entry, nb::object object) {
  const auto* encoder = nb::cast<const EntryEncoder*>(object);
  const std::shared_ptr<const void> owner = owned_by(std::move(object));
  entry.versions = [owner, encoder] {
    nb::gil_scoped_acquire gil;
    return encoder->versions();
  };
  if (entry.role == Role::module)
    entry.parameters = [owner, encoder] {
      nb::gil_scoped_acquire gil;
      return parameter_names(encoder->object());
    };
  if (entry.role == Role::optimizer)
    entry.describe = [owner, encoder](const std::vector<ParameterName>& names) {
      nb::gil_scoped_acquire gil;
      return describe_optimizer(encoder->object(), names);
    };
}

// What an entry gives of its DTensors; kept by Python as long as it stays the same.
struct Shards {
  std::vector<Shard> all;
};

using Sizes = std::vector<std::int64_t>;

void add_shard(Shards& shards, const std::vector<std::variant<std::int64_t, std::string>>& path,
               Sizes shape, Sizes offsets, Sizes sizes, std::size_t replica, std::size_t replicas) {
  Shard shard{.path = {},
              .shape = std::move(shape),
              .offsets = std::move(offsets),
              .sizes = std::move(sizes),
              .replica = replica,
              .replicas = replicas};
  for (const auto& key : path)
    shard.path.push_back(std::visit([](const auto& x) { return Value(x); }, key));
  shards.all.push_back(std::move(shard));
}

void add_entry(TrainingState& state, std::string name, Role role, std::function<Value()> state_dict,
               std::function<void(const Value&)> load_state_dict, Check check,
               Parameters parameters, Describe describe, Align align, nb::object encoder,
               std::function<Value()> live, std::function<Value()> structure,
               std::function<const Shards*()> shards) {
  TrainingState::Entry entry;
  entry.name = std::move(name);
  entry.role = role;
  entry.state_dict = [state_dict = std::move(state_dict)] {
    nb::gil_scoped_acquire gil;
    try {
      return state_dict();
    } catch (nb::python_error& raised) {
      rethrow_from_callback(raised);
    }
  };
  entry.load_state_dict = std::move(load_state_dict);
  entry.check = entry_check(std::move(check));
  if (parameters) entry.parameters = [parameters] { return from_python(parameters()); };
  if (describe)
    entry.describe = [describe](const std::vector<ParameterName>& names) {
      return describe(to_python(names));
    };
  entry.align = entry_align(std::move(align));
  if (!encoder.is_none()) ask_encoder(entry, std::move(encoder));
  entry.live = std::move(live);
  entry.structure = std::move(structure);
  if (shards) entry.shards = [shards] { return shards()->all; };
  state.add_entry(std::move(entry));
}

// `allocate` gets each storage that is read into memory of its own, and calls set_data on it.
void restore_state(TrainingState& state, const CheckpointFile& file, const MatchOptions& options,
                   nb::callable allocate) {
  const auto call = [&allocate](TensorStorage& storage) {
    nb::gil_scoped_acquire gil;
    allocate(nb::cast(&storage, nb::rv_policy::reference));
  };
  nb::gil_scoped_release release;
  state.restore(file, options, call);
}

void bind_state(nb::module_& m) {
  nb::enum_<Role>(m, "Role")
      .value("value", Role::value)
      .value("module", Role::module)
      .value("optimizer", Role::optimizer)
      .value("other", Role::other);
  nb::class_<Shards>(m, "Shards")
      .def(nb::init<>())
      .def("add", &add_shard, nb::arg("path"), nb::arg("shape"), nb::arg("offsets"),
           nb::arg("sizes"), nb::arg("replica"), nb::arg("replicas"));
  nb::class_<MatchOptions>(m, "MatchOptions")
      .def(
          "__init__",
          [](MatchOptions* place, bool strict, std::vector<std::string> only,
             std::vector<std::pair<std::string, std::string>> rename, bool cast) {
            new (place) MatchOptions{strict, std::move(only), std::move(rename), cast};
          },
          nb::arg("strict"), nb::arg("only"), nb::arg("rename"), nb::arg("cast"));
  nb::class_<TrainingState>(m, "TrainingState")
      .def(nb::init<>())
      .def_rw("step", &TrainingState::step)
      .def_rw("libraries", &TrainingState::libraries)
      .def("add_entry", &add_entry, nb::arg("name"), nb::arg("role"), nb::arg("state_dict"),
           nb::arg("load_state_dict"), nb::arg("check").none(), nb::arg("parameters").none(),
           nb::arg("describe").none(), nb::arg("align").none(), nb::arg("encoder") = nb::none(),
           nb::arg("live") = nb::none(), nb::arg("structure") = nb::none(),
           nb::arg("shards") = nb::none())
      .def("add_none", [](TrainingState& s, std::string name) { s.add(std::move(name), nullptr); })
      .def("add_rng",
           [](TrainingState& s, std::string name, std::function<Value()> capture,
              std::function<void(const Value&)> restore) {
             s.add_rng({std::move(name), std::move(capture), std::move(restore)});
           })
      .def(
          "state_dict", [](const TrainingState& s) { return Value(s.state_dict()); }, Released())
      .def("optimizers", &TrainingState::optimizers, Released())
      .def("load_state_dict", &TrainingState::load_state_dict, nb::arg("value"),
           nb::arg("recorded"), nb::arg("options"), Released())
      .def("restore", &restore_state, nb::arg("file"), nb::arg("options"), nb::arg("allocate"))
      .def("mark_broken", &TrainingState::mark_broken)
      .def_prop_ro("broken", &TrainingState::broken)
      .def_prop_ro("notes", &TrainingState::notes);
  m.def("match_optimizer", &match, nb::arg("class_name"), nb::arg("groups"), nb::arg("state"),
        nb::arg("in_file"), nb::arg("recorded"), nb::arg("strict"));
}

void bind_checkpoint(nb::module_& m) {
  nb::enum_<Mode>(m, "Mode").value("min", Mode::min).value("max", Mode::max);
  nb::enum_<OnError>(m, "OnError")
      .value("warn", OnError::warn)
      .value("raise_error", OnError::raise);
  nb::enum_<Capture>(m, "Capture")
      .value("eager", Capture::eager)
      .value("overlapped", Capture::overlapped)
      .value("checked", Capture::checked);
  nb::enum_<WhenBusy>(m, "WhenBusy").value("wait", WhenBusy::wait).value("skip", WhenBusy::skip);
  nb::class_<Best>(m, "Best").def(nb::init<std::string, Mode, std::size_t>());
  nb::class_<Checkpoint>(m, "Checkpoint")
      .def_ro("path", &Checkpoint::path)
      .def_ro("size", &Checkpoint::size)
      .def_ro("info", &Checkpoint::info);
  nb::class_<ListedCheckpoint>(m, "ListedCheckpoint")
      .def_ro("checkpoint", &ListedCheckpoint::checkpoint)
      .def_ro("problem", &ListedCheckpoint::problem);
  nb::class_<PlannedCheckpoint>(m, "PlannedCheckpoint")
      .def_ro("checkpoint", &PlannedCheckpoint::checkpoint)
      .def_ro("reasons", &PlannedCheckpoint::reasons);
  m.def("list_checkpoints", &list_checkpoints, nb::arg("directory"), Released());
}

void bind_handle(nb::module_& m) {
  nb::class_<SaveStats>(m, "SaveStats")
      .def_ro("bytes", &SaveStats::bytes)
      .def_prop_ro("stalled", [](const SaveStats& s) { return s.stalled.count(); })
      .def_prop_ro("fence_waited", [](const SaveStats& s) { return s.fence_waited.count(); })
      .def_prop_ro("copied", [](const SaveStats& s) { return s.copied.count(); })
      .def_prop_ro("written", [](const SaveStats& s) { return s.written.count(); })
      .def_prop_ro("durable", [](const SaveStats& s) { return s.durable.count(); });
  nb::class_<SaveHandle>(m, "SaveHandle")
      .def("done", &SaveHandle::done)
      .def(
          "wait",
          [](const SaveHandle& h, double seconds) {
            return h.wait(std::chrono::duration<double>(seconds));
          },
          Released())
      .def("skipped", &SaveHandle::skipped)
      .def("error", [](const SaveHandle& h) { return exception_of(h.error()); })
      .def("checkpoint", &SaveHandle::checkpoint)
      .def("stats", &SaveHandle::stats)
      .def("progress", &SaveHandle::progress);
}

// `allocate` gives a tensor over that many bytes, or None.
AllocateStaging staging_from(nb::callable allocate) {
  return [allocate = owned_by(std::move(allocate))](std::uint64_t bytes) {
    const nb::gil_scoped_acquire gil;
    const nb::object tensor = nb::handle(owner_object(allocate))(bytes);
    if (tensor.is_none()) return std::shared_ptr<std::byte>();
    auto* const data =
        reinterpret_cast<std::byte*>(unsigned_result(tensor.ptr(), torch_objects().data_ptr));
    const auto owner = owned_by(tensor);
    return std::shared_ptr<std::byte>(data, [owner](std::byte*) {});
  };
}

std::function<void(const std::string&)> teller(std::function<void(nb::object)> tell) {
  return [tell = std::move(tell)](const std::string& text) {
    const nb::gil_scoped_acquire gil;
    tell(text_for_people(text));
  };
}

// What Python's constructor takes, by the names that it has there.
ManagerOptions options_from(const nb::dict& given) {
  ManagerOptions options;
  const auto take = [&]<class T>(const char* name, T& slot) { slot = nb::cast<T>(given[name]); };
  const auto seconds = [&](const char* name, std::chrono::duration<double>& slot) {
    slot = std::chrono::duration<double>(nb::cast<double>(given[name]));
  };
  take("keep_last", options.keep_last);
  take("keep_best", options.keep_best);
  take("keep_every_steps", options.keep_every.steps);
  seconds("keep_every_seconds", options.keep_every.time);
  take("save_every_steps", options.save_every.steps);
  seconds("save_every_seconds", options.save_every.time);
  take("overhead", options.overhead);
  take("save_on_signal", options.save_on_signal);
  seconds("grace", options.grace);
  take("on_error", options.on_error);
  take("when_busy", options.when_busy);
  seconds("stuck_after", options.stuck_after);
  take("capture", options.capture);
  take("staging_bytes", options.staging_bytes);
  if (const nb::object ranks = given["ranks"]; !ranks.is_none())
    options.ranks = nb::cast<std::shared_ptr<Ranks>>(ranks);
  seconds("rank_timeout", options.rank_timeout);
  options.allocate_staging = staging_from(nb::cast<nb::callable>(given["allocate_staging"]));
  using Tell = std::function<void(nb::object)>;
  options.warning = teller(nb::cast<Tell>(given["warning"]));
  options.note = teller(nb::cast<Tell>(given["note"]));
  return options;
}

void make_saver(AsyncSaver* place, std::uint64_t staging_bytes, nb::callable allocate,
                std::function<void(nb::object)> tell) {
  new (place) AsyncSaver({.staging_bytes = staging_bytes,
                          .allocate_staging = staging_from(std::move(allocate)),
                          .warning = teller(std::move(tell))});
}

void open_manager(CheckpointManager* place, const std::filesystem::path& directory,
                  const nb::dict& given) {
  ManagerOptions options = options_from(given);
  nb::gil_scoped_release release;
  new (place) CheckpointManager(directory, std::move(options));
}

std::vector<PlannedCheckpoint> plan_for(const std::filesystem::path& directory,
                                        std::size_t keep_last, std::vector<Best> keep_best,
                                        std::int64_t every_steps, double every_seconds) {
  return retention_plan(
      directory, {.keep_last = keep_last,
                  .keep_best = std::move(keep_best),
                  .keep_every = {every_steps, std::chrono::duration<double>(every_seconds)}});
}

std::optional<double> interval_of(const CheckpointManager& manager) {
  const auto interval = manager.interval();
  return interval ? std::optional(interval->count()) : std::nullopt;
}

std::optional<Checkpoint> restore(CheckpointManager& manager, std::optional<std::int64_t> step,
                                  const std::optional<std::filesystem::path>& path,
                                  nb::callable take) {
  const auto call = [&take](const CheckpointFile& file) {
    nb::gil_scoped_acquire gil;
    try {
      take(nb::cast(&file, nb::rv_policy::reference));
    } catch (nb::python_error& raised) {
      rethrow_from_callback(raised);
    }
  };
  RestoreOptions options{.step = step, .path = path.value_or("")};
  nb::gil_scoped_release release;
  return manager.restore(options, call);
}

}  // namespace

void bind_engine(nb::module_& m) {
  bind_state(m);
  bind_checkpoint(m);
  bind_handle(m);
  nb::class_<Ranks>(m, "Ranks");
  m.def("ranks_from", &ranks_from, nb::arg("store"), nb::arg("rank"), nb::arg("size"));
  nb::class_<CheckpointManager>(m, "CheckpointManager")
      .def("__init__", &open_manager, nb::arg("directory"), nb::arg("options"))
      .def("restore", &restore, nb::arg("step").none(), nb::arg("path").none(), nb::arg("take"))
      .def("save",
           nb::overload_cast<const TrainingState&, const Metrics&>(&CheckpointManager::save),
           nb::arg("state"), nb::arg("metrics"), Released())
      .def("prepare", &CheckpointManager::prepare, nb::arg("state"), Released())
      .def("fence", &CheckpointManager::fence, Released())
      .def("should_save", &CheckpointManager::should_save, nb::arg("step"), Released())
      .def_prop_ro("preempted", &CheckpointManager::preempted)
      .def_prop_ro("interval", &interval_of, Released())
      .def("progress", &CheckpointManager::progress)
      .def("pin", &CheckpointManager::pin, nb::arg("step"), nb::arg("reason"), Released())
      .def("unpin", &CheckpointManager::unpin, nb::arg("step"), Released())
      .def("retention_plan", &CheckpointManager::retention_plan, Released())
      .def("prune", &CheckpointManager::prune, Released())
      .def(
          "idle",
          [](const CheckpointManager& manager, double seconds) {
            return manager.idle(std::chrono::duration<double>(seconds));
          },
          nb::arg("timeout"), Released())
      .def("checkpoints", &CheckpointManager::checkpoints, Released())
      .def("latest_step", &CheckpointManager::latest_step, Released())
      .def("best_step", &CheckpointManager::best_step, nb::arg("metric"), Released())
      .def("all_steps", &CheckpointManager::all_steps, Released())
      .def_prop_ro("directory", &CheckpointManager::directory)
      .def("wait", &CheckpointManager::wait, Released())
      .def("close", &CheckpointManager::close, Released());
  nb::class_<AsyncSaver>(m, "AsyncSaver")
      .def("__init__", &make_saver, nb::arg("staging_bytes"), nb::arg("allocate_staging"),
           nb::arg("warning"))
      .def("save", &AsyncSaver::save, nb::arg("path"), nb::arg("state"), Released())
      .def("remove", &AsyncSaver::remove, nb::arg("path"), Released())
      .def("progress", &AsyncSaver::progress)
      .def(
          "idle",
          [](const AsyncSaver& saver, double seconds) {
            return saver.idle(std::chrono::duration<double>(seconds));
          },
          nb::arg("timeout"), Released())
      .def("wait", &AsyncSaver::wait, Released())
      .def("close", &AsyncSaver::close, Released());
  m.def("retention_plan", &plan_for, nb::arg("directory"), nb::arg("keep_last"),
        nb::arg("keep_best"), nb::arg("every_steps"), nb::arg("every_seconds"), Released());
  m.def("read_history", &read_history, nb::arg("directory"), Released());
  m.def("watched_signals", &watched_signals,
        "The signals that save_on_signal has this process watch now.");
  m.def("watch_signals_in_child", &watch_signals_in_child, nb::arg("signals"), nb::arg("parent"),
        "In a worker process: ignores `signals`, unless they come from the process `parent`.");
}

}  // namespace perdure::python
