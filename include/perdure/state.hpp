// TrainingState: everything that a training run must get back, registered once, by reference.
//
// It holds `step` and, for every library whose objects are added (LibTorch through
// perdure/torch.hpp), the random number generators. What is added must outlive the state. Not
// synchronised: one thread at a time.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace perdure {

class TrainingState;

enum class Role { value, module, optimizer, other };

// What does not fit, one line each ("fc.weight: shape [3, 4] in the file, [3, 5] in the module");
// the name of the entry is put in front.
using Problems = std::vector<std::string>;

// How a restore deals with a file that is not just what is registered. Names are those of entries,
// and of what is in them with the keys joined by dots: "optimizer", "model.fc.weight"; "step" and
// "rng" are names, too. A name stands for all that is below it. Patterns have "*" in them for any
// run of characters, dots too ("model.encoder.*"), and stand for whole names. That keys differ by
// the prefixes of wrappers ("module.", "_orig_mod.") needs no option.
struct MatchOptions {
  bool strict = true;  // false: what only one side has is skipped; what does not fit is still not
  // Names or patterns of what is to be restored; all else stays as it is. Of modules also single
  // tensors; all other entries whole. Empty: everything.
  std::vector<std::string> only = {};
  // From names or patterns of the file to those here, with as many "*" on both sides, as
  // {{"net", "model"}, {"model.old.*", "model.new.*"}}: the first that fits a name. The names that
  // a file has recorded for the parameters of its optimizers change with them.
  std::vector<std::pair<std::string, std::string>> rename = {};
  // Whether tensors of modules that have another dtype in the file are converted: floating point
  // (and complex) numbers to any precision, integers to wider ones.
  bool cast = false;
};

// Who a parameter is: the address of its tensor object and its name ("model.fc.weight").
struct ParameterName {
  const void* identity = nullptr;
  std::string name;
};

// What an optimizer's state in a file is brought into the optimizer's own order by.
struct Alignment {
  const CheckpointInfo::Optimizer& recorded;  // what the file says of it; empty for foreign files
  const std::vector<ParameterName>& names;    // of the parameters of all registered modules
  bool strict = true;                         // false: what only one side has is no problem
  Problems& problems;
  Problems& notes;  // what became of the things that do not fit, where that is no problem
};

// A tensor in a state_dict that is a box of a larger one, whose other parts other processes have:
// the local tensor of a DTensor.
struct Shard {
  KeyPath path;                       // in the object's state_dict
  std::vector<std::int64_t> shape;    // of the whole
  std::vector<std::int64_t> offsets;  // of this box in it
  std::vector<std::int64_t> sizes;    // of this box: the shape that the tensor has here
  // The same box is with so many processes, of which this is number `replica`.
  std::size_t replica = 0;
  std::size_t replicas = 1;
};

// How an object of type T takes part. Specialise it for types of your own:
//   static constexpr Role role = Role::other;
//   static Value state_dict(const T&);
//   static void load_state_dict(T&, const Value&);
// and, where they help, any of:
//   // What would not fit, without changing anything.
//   static void check(const T&, const Value&, Problems&);
//   static void attach(TrainingState&);  // called by add: register RNG kinds
//   // Modules: names without the entry's own.
//   static std::vector<ParameterName> parameters(const T&);
//   // Optimizers: what the file should say of it, and the file's order -> its own order (see
//   // perdure/optimizer_match.hpp).
//   static CheckpointInfo::Optimizer describe(const T&, const std::vector<ParameterName>&);
//   static Value align(const T&, const Value&, const Alignment&);
//   static Value live(const T&);  // see TrainingState::Entry
//   static Value structure(const T&);  // modules; see TrainingState::Entry
//   static std::vector<Shard> shards(const T&);  // see TrainingState::Entry
template <class T>
struct Adapter;

class TrainingState {
 public:
  // One registered thing, type-erased. The functions mirror Adapter; only the first two are
  // required.
  struct Entry {
    std::string name;
    Role role = Role::other;
    std::function<Value()> state_dict;
    std::function<void(const Value&)> load_state_dict;
    std::function<void(const Value&, Problems&)> check;
    std::function<std::vector<ParameterName>()> parameters;
    std::function<CheckpointInfo::Optimizer(const std::vector<ParameterName>&)> describe;
    std::function<Value(const Value&, const Alignment&)> align;
    // For overlapped capture, of tensors that the last state_dict() gave as Liveness::stepped, or
    // that share their version counter: the counters, in an order of the entry's own; and the name
    // of the one at a place in that order (default: the order is that of those tensors in the
    // tree).
    std::function<std::vector<std::uint64_t>()> versions = {};
    std::function<std::string(std::size_t)> version_name = {};
    // Of an optimizer: the storages (their first bytes) of the parameters that its step changes.
    std::function<std::vector<const void*>()> stepped = {};
    // For a restore: the object's state as state_dict() gives it, as far as its tensors are marked
    // as the object's own (Liveness). A file's bytes may be read straight into them, after check
    // and before load_state_dict, which then finds those tensors in its argument. Whoever has it
    // gets tensors without data in align and check: all but numbers (of an optimizer), and those
    // that give several values to one memory.
    std::function<Value()> live = {};
    // Of a module: a dict with the keys of its state_dict, and for each a tensor whose dtype and
    // shape are wanted (it needs no data), or None for what may be anything. With it, a load
    // matches the keys, compares dtypes and shapes, and lists what does not fit; load_state_dict
    // then gets keys that are here, and maybe not all of them (see MatchOptions).
    std::function<Value()> structure = {};
    // Which of the tensors that state_dict() and live() give are boxes of larger ones. A path may
    // also lead to what an optimizer has of one parameter, before it has any: it then stands for
    // all below it that has the shape of the whole. structure() and align() see whole tensors,
    // everything else the boxes.
    std::function<std::vector<Shard>()> shards = {};
  };
  // One kind of random number generator: "torch", "python", "numpy", "cuda".
  struct RngKind {
    std::string name;
    std::function<Value()> capture;
    std::function<void(const Value&)> restore;
  };

  std::int64_t step = 0;  // optimizer steps done; the loop counts it
  // What a file says of the libraries that wrote it: {"torch", "2.13.0"}, by the adapter for it.
  std::map<std::string, std::string> libraries;

  // Registers `object` under `name`, which becomes the key in the file. Error(invalid) where the
  // name is taken, empty, or one of perdure's own ("step", "rng").
  template <class T>
  void add(std::string name, T& object);
  // add("optimizer", nullptr) says that this run has no optimizer. Without it, a state with a
  // module and no optimizer is refused: momentum forgotten is the mistake that nobody notices.
  void add(std::string name, std::nullptr_t);
  void add_entry(Entry entry);
  void add_rng(RngKind kind);  // a second one of the same name is ignored

  const std::vector<Entry>& entries() const noexcept { return entries_; }

  // The tree that goes into a file: {name: state, ..., "step": int, "rng": {kind: state}}.
  // Error(invalid) for a module without optimizer (see add), and while the state is broken.
  Dict state_dict() const;
  // Of all entries, with their names in front of the paths.
  std::vector<Shard> shards() const;
  // What the file should say of each optimizer: class and parameter names.
  std::map<std::string, CheckpointInfo::Optimizer> optimizers() const;

  // Everything in `value` goes back into what is registered. First all of it is checked; where
  // anything does not fit, Error(invalid) has a table of it, says what can be done, and nothing is
  // changed. Where an object throws half way, the state is broken() until a load of all of it
  // succeeds. `recorded`: what the file says of its optimizers (empty for files that are not
  // perdure's).
  void load_state_dict(const Value& value,
                       const std::map<std::string, CheckpointInfo::Optimizer>& recorded = {},
                       const MatchOptions& options = {});
  bool broken() const noexcept { return broken_; }
  // For who restores several states together: what this one has got is no whole without the others.
  void mark_broken() noexcept { broken_ = true; }
  // What the last load did that its caller should know of: with strict = false, what was skipped,
  // and what became of the state of an optimizer whose parameters are not those of the file. A
  // manager gives it to ManagerOptions::warning.
  const Problems& notes() const noexcept { return notes_; }

  // The same with a file that is open and not yet read. What fits (and is strict, and all) goes
  // from the file straight into the tensors of registered objects, without a second copy in memory;
  // a block is verified before it is written there. Damage that is found while that is done leaves
  // the state broken(), like an object that throws. The file's tensors are the objects' own
  // afterwards. `allocate` is for all else, as in CheckpointFile::read_all.
  void restore(const CheckpointFile& file, const MatchOptions& options = {},
               const CheckpointFile::Allocate& allocate = {});

 private:
  class Loading;
  void put(Loading& loading);
  std::vector<ParameterName> parameter_names() const;
  void require_optimizer() const;

  std::vector<Entry> entries_;
  std::vector<RngKind> rng_kinds_;
  Dict kept_rng_;  // RNG kinds of the file that this program has not: written back as they were
  Problems notes_;
  bool without_optimizer_ = false;
  bool broken_ = false;
};

// Plain values: bool, integers, float, double, std::string, Value, Dict.
template <class T>
concept PlainValue =
    std::same_as<T, bool> || std::integral<T> || std::floating_point<T> ||
    std::same_as<T, std::string> || std::same_as<T, Value> || std::same_as<T, Dict>;

template <PlainValue T>
struct Adapter<T> {
  static constexpr Role role = Role::value;
  static Value state_dict(const T& x) {
    if constexpr (std::floating_point<T>)
      return Value(static_cast<double>(x));
    else
      return Value(x);
  }
  static T convert(const Value& v) {
    if constexpr (std::same_as<T, bool>)
      return v.as_bool();
    else if constexpr (std::integral<T>) {
      const std::int64_t x = v.as_int();
      if (!std::in_range<T>(x))
        throw Error(ErrorCode::invalid,
                    "the value " + std::to_string(x) + " does not fit the registered integer type");
      return static_cast<T>(x);
    } else if constexpr (std::floating_point<T>)
      return static_cast<T>(v.as_double());
    else if constexpr (std::same_as<T, std::string>)
      return v.as_string();
    else if constexpr (std::same_as<T, Dict>)
      return v.as_dict();
    else
      return v;
  }
  static void load_state_dict(T& x, const Value& v) { x = convert(v); }
  static void check(const T&, const Value& v, Problems& problems) {
    try {
      convert(v);
    } catch (const Error& error) {
      problems.emplace_back(error.what());
    }
  }
};

template <class T>
void TrainingState::add(std::string name, T& object) {
  using A = Adapter<T>;
  Entry entry;
  entry.name = std::move(name);
  entry.role = A::role;
  entry.state_dict = [&object] { return A::state_dict(object); };
  entry.load_state_dict = [&object](const Value& v) {
    try {
      A::load_state_dict(object, v);
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {  // of the object's own: it gets the entry's name
      throw Error(ErrorCode::invalid, error.what());
    }
  };
  if constexpr (requires(const Value& v, Problems& p) { A::check(object, v, p); })
    entry.check = [&object](const Value& v, Problems& p) { A::check(object, v, p); };
  if constexpr (requires { A::parameters(object); })
    entry.parameters = [&object] { return A::parameters(object); };
  if constexpr (requires { A::structure(object); })
    entry.structure = [&object] { return A::structure(object); };
  if constexpr (requires { A::live(object); }) entry.live = [&object] { return A::live(object); };
  if constexpr (requires(const std::vector<ParameterName>& names) { A::describe(object, names); })
    entry.describe = [&object](const std::vector<ParameterName>& names) {
      return A::describe(object, names);
    };
  if constexpr (requires(const Value& v, const Alignment& a) { A::align(object, v, a); })
    entry.align = [&object](const Value& v, const Alignment& a) { return A::align(object, v, a); };
  if constexpr (requires { A::versions(object); })
    entry.versions = [&object] { return A::versions(object); };
  if constexpr (requires { A::version_name(object, std::size_t{}); })
    entry.version_name = [&object](std::size_t place) { return A::version_name(object, place); };
  if constexpr (requires { A::shards(object); })
    entry.shards = [&object] { return A::shards(object); };
  if constexpr (requires { A::stepped(object); })
    entry.stepped = [&object] { return A::stepped(object); };
  add_entry(std::move(entry));
  if constexpr (requires(TrainingState& s) { A::attach(s); }) A::attach(*this);
}

namespace detail {

// For the load_state_dict of a module by itself: what is in `in_file` under the keys of `own` (see
// TrainingState::Entry::structure). Error(invalid) with a table where not all of it fits `what`.
Value match_state_dict(const Value& in_file, const Value& own, const std::string& what);

}  // namespace detail

}  // namespace perdure
