#include <fmt/format.h>

#include <algorithm>
#include <perdure/optimizer_match.hpp>

#include "engine/optimizer_pairs.hpp"
#include "engine/optimizer_table.hpp"

namespace perdure {
namespace {

using engine::OptimizerPairs;
constexpr std::size_t kNone = OptimizerPairs::kNone;

class Match {
 public:
  Match(const OptimizerOutline& own, const Value& in_file, const Alignment& alignment)
      : own_(own),
        alignment_(alignment),
        pairs_(engine::pair_parameters(own, in_file, alignment.recorded)),
        file_(in_file.as_dict()) {}

  // Lists what stands against it.
  void check() const {
    if (pairs_.by_position)
      check_positions();
    else if (own_.class_name == "LBFGS")
      check_order();
    else if (pairs_.survivors() == 0 && !(pairs_.own.params.empty() && pairs_.file.params.empty()))
      alignment_.problems.push_back(
          "none of its parameters is in the file: is this the optimizer of another model, or is "
          "the model registered under another name?" +
          table());
    else if (!pairs_.fit())
      tell();
  }

  Value result() const {
    Dict result = file_;
    result.set("state", state());
    Value::Items groups;
    std::int64_t first = 0;
    for (std::size_t g = 0; g < own_.groups.size(); ++g) {
      const auto size = static_cast<std::int64_t>(own_.groups[g].params.size());
      groups.emplace_back(group(g, first));
      first += size;
    }
    result.set("param_groups", Value::list(std::move(groups)));
    return result;
  }

 private:
  void check_positions() const {
    if (pairs_.fit()) return;
    alignment_.problems.push_back(
        "its parameters have no names to go by, and by position they do not fit:" +
        engine::table_of_positions(pairs_) +
        "\n  Register the modules that they belong to, in the run that saves and in this one: "
        "then they go by name.");
  }

  void check_order() const {
    const auto& params = pairs_.own.params;
    bool same = pairs_.fit();
    for (std::size_t i = 0; same && i < params.size(); ++i) same = params[i].partner == i;
    if (same) return;
    alignment_.problems.push_back(
        "LBFGS has one history for all its parameters together, which fits only the same ones in "
        "the same order: make it with the parameters in the file's order, or start a new one "
        "without restoring it." +
        (pairs_.fit() ? "" : table()));
  }

  void tell() const {
    if (alignment_.strict)
      alignment_.problems.push_back("its parameters are not those of the file:" + table() +
                                    "\n  strict=False does what the last column says.");
    else
      alignment_.notes.push_back("its parameters are not those of the file (strict=False):" +
                                 table(true));
  }

  std::string table(bool done = false) const {
    const auto has_state = [this](std::size_t i) { return !own_state(i).is_none(); };
    return engine::table_of(pairs_, has_state, done);
  }

  Value own_state(std::size_t number) const { return own_.state ? own_.state(number) : Value(); }

  Value state() const {
    const Dict& in_file = file_.at("state").as_dict();
    Dict state(in_file.kind());
    for (std::size_t i = 0; i < pairs_.own.params.size(); ++i) {
      const auto& param = pairs_.own.params[i];
      if (!pairs_.keeps_state(param)) {
        if (Value fresh = own_state(i); !fresh.is_none()) state.set(i, std::move(fresh));
      } else if (const Value* found = in_file.find(pairs_.ids[param.partner])) {
        state.set(i, *found);
      }
    }
    add_what_is_of_no_parameter(in_file, state);
    return state;
  }

  void add_what_is_of_no_parameter(const Dict& in_file, Dict& state) const {
    Dict ids;
    for (const Value& id : pairs_.ids) ids.set(id, true);
    for (const auto& [key, value] : in_file)
      if (ids.find(key) == nullptr && state.find(key) == nullptr) state.set(key, value);
  }

  Dict group(std::size_t g, std::int64_t first) const {
    const auto& in_file = file_.at("param_groups").as_items();
    const auto& place = pairs_.own.groups[g];
    Dict group;
    const auto take = [&](const Dict& options) {
      for (const auto& [key, value] : options) {
        const std::string name = key.kind() == Kind::string ? key.as_string() : "";
        if (name != "params" && name != "param_names") group.set(key, value);
      }
    };
    if (place.continued) {
      take(in_file[place.counterpart].as_dict());
    } else {
      take(own_.groups[g].options);
      for (const char* key : {"lr", "initial_lr"})
        if (place.mostly != kNone && in_file[place.mostly].contains(key))
          group.set(key, in_file[place.mostly][key]);
    }
    Value::Items params;
    for (std::size_t i = 0; i < place.size; ++i)
      params.emplace_back(first + static_cast<std::int64_t>(i));
    group.set("params", Value::list(std::move(params)));
    if (const Value* names = own_.groups[g].options.find("param_names"))
      group.set("param_names", *names);
    return group;
  }

  const OptimizerOutline& own_;
  const Alignment& alignment_;
  OptimizerPairs pairs_;
  const Dict& file_;
};

}  // namespace

Value match_optimizer(const OptimizerOutline& own, const Value& in_file,
                      const Alignment& alignment) {
  const Match match(own, in_file, alignment);
  const std::size_t before = alignment.problems.size();
  match.check();
  return alignment.problems.size() == before ? match.result() : in_file;
}

}  // namespace perdure
