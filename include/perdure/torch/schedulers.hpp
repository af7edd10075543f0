// Learning rate schedules that can be saved: StepLR and ReduceLROnPlateau as
// torch.optim.lr_scheduler has them in Python (2.13), with the same arguments, the same learning
// rates and the same state_dict, so that a run goes on in either language. Part of
// perdure/torch.hpp: include that.
//
//   perdure::ReduceLROnPlateau scheduler(optimizer, {.factor = 0.5, .patience = 3});
//   state.add("scheduler", scheduler);
//   ...
//   scheduler.step(validation_loss);
//
// LibTorch's own plateau scheduler keeps all its state private, and its StepLR (which perdure can
// save, too) decays one step later than Python's. A scheduler works on any optimizer, which must
// outlive it. The learning rates themselves are the optimizer's and come back with it: register
// both. Not synchronised: for the thread that trains.
#pragma once

#include <torch/optim.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <perdure/checkpoint_manager.hpp>
#include <perdure/torch/member_adapter.hpp>
#include <perdure/torch/optimizer_visitors.hpp>
#include <string>
#include <type_traits>
#include <vector>

namespace perdure {

namespace detail {

inline std::vector<double> learning_rates(const torch::optim::Optimizer& optimizer) {
  std::vector<double> rates;
  for (const auto& group : optimizer.param_groups()) rates.push_back(group.options().get_lr());
  return rates;
}

// Visitors of a scheduler's fields. field(key, value); constant(key, value) for what Python's has
// and ours need not know; optional(key, value) where a file may lack it.
struct FieldWriter {
  Dict& dict;
  void field(const char* key, const auto& x) { dict.set(key, x); }
  void field(const char* key, const std::optional<double>& x) {
    dict.set(key, x ? Value(*x) : Value());
  }
  void field(const char* key, const std::vector<double>& list) {
    dict.set(key, Value::list({list.begin(), list.end()}));
  }
  void constant(const char* key, const auto& x) { dict.set(key, x); }
  void optional(const char* key, const auto& x) { field(key, x); }
};

inline std::vector<double> read_numbers(const Value& value) {
  std::vector<double> list;
  for (const Value& item : value.as_items()) list.push_back(read_double(item));
  return list;
}

struct FieldReader : DictReader {
  template <class T>
  void field(const char* key, T& slot) {
    if (const Value* value = find_required(key))
      read(key, *value, slot, [](const Value& x) -> T {
        if constexpr (std::is_same_v<T, std::int64_t>)
          return x.as_int();
        else if constexpr (std::is_same_v<T, std::string>)
          return x.as_string();
        else if constexpr (std::is_same_v<T, std::vector<double>>)
          return read_numbers(x);
        else if constexpr (std::is_same_v<T, std::optional<double>>)
          return x.is_none() ? T() : T(read_double(x));
        else
          return read_double(x);
      });
  }
  void constant(const char*, const auto&) {}
  void optional(const char* key, auto& slot) {
    if (find(key) != nullptr) field(key, slot);
  }
};

template <class Fields>
Value write_fields(const Fields& fields) {
  Dict dict;
  Fields::visit(fields, FieldWriter{dict});
  return dict;
}

// The fields as the file has them; what it may lack stays. `owner` is the class.
template <class Fields>
Fields read_fields(Fields fields, const Value& value, const char* owner, Problems& problems) {
  if (value.is_mapping())
    Fields::visit(fields, FieldReader{{value.as_dict(), owner, problems}});
  else
    problems.push_back(describe_value(value) + " in the file, a " + owner + " here");
  return fields;
}

}  // namespace detail

// Multiplies the learning rates by gamma every step_size steps. As in Python, the constructor makes
// a first step; the argument last_epoch, which is for going on by hand, it lacks. Error(invalid)
// where step_size is below 1.
class StepLR {
 public:
  explicit StepLR(torch::optim::Optimizer& optimizer, std::int64_t step_size, double gamma = 0.1)
      : optimizer_(&optimizer),
        fields_{
            .step_size = step_size, .gamma = gamma, .base_lrs = detail::learning_rates(optimizer)} {
    require_step_size(step_size);
    step();
  }

  // After optimizer.step(), mostly once an epoch.
  void step() {
    ++fields_.step_count;
    ++fields_.last_epoch;
    if (fields_.last_epoch != 0 && fields_.last_epoch % fields_.step_size == 0)
      for (auto& group : optimizer_->param_groups())
        group.options().set_lr(group.options().get_lr() * fields_.gamma);
    fields_.last_lr = detail::learning_rates(*optimizer_);
  }

  const std::vector<double>& get_last_lr() const noexcept { return fields_.last_lr; }
  const std::vector<double>& base_lrs() const noexcept { return fields_.base_lrs; }
  std::int64_t step_size() const noexcept { return fields_.step_size; }
  double gamma() const noexcept { return fields_.gamma; }
  std::int64_t last_epoch() const noexcept { return fields_.last_epoch; }

  Value state_dict() const { return detail::write_fields(fields_); }
  // Takes step_size and gamma from the file, too, as Python's does. The state of LibTorch's StepLR
  // will do as well.
  void load_state_dict(const Value& value) {
    Problems problems;
    Fields loaded = read(value, problems);
    detail::throw_if_any(problems, "the StepLR");
    fields_ = std::move(loaded);
  }
  void check(const Value& value, Problems& problems) const { read(value, problems); }

 private:
  struct Fields {
    std::int64_t step_size;
    double gamma;
    std::vector<double> base_lrs;
    std::int64_t last_epoch = -1;
    std::int64_t step_count = 0;
    std::vector<double> last_lr{};

    static void visit(auto& self, auto&& v) {
      v.field("step_size", self.step_size);
      v.field("gamma", self.gamma);
      v.optional("base_lrs", self.base_lrs);
      v.field("last_epoch", self.last_epoch);
      v.field("_step_count", self.step_count);
      v.constant("_is_initial", false);
      v.constant("_get_lr_called_within_step", false);
      v.field("_last_lr", self.last_lr);
    }
  };

  static void require_step_size(std::int64_t step_size) {
    if (step_size < 1)
      throw Error(ErrorCode::invalid,
                  "step_size is " + std::to_string(step_size) + ", it has to be 1 or more");
  }
  Fields read(const Value& value, Problems& problems) const {
    Fields loaded = detail::read_fields(fields_, value, "StepLR", problems);
    try {
      require_step_size(loaded.step_size);
    } catch (const Error& error) {
      problems.push_back(std::string("StepLR: ") + error.what());
    }
    return loaded;
  }

  torch::optim::Optimizer* optimizer_;
  Fields fields_;
};

// What counts as better than the best: by a share of it (rel), or by a difference (abs).
enum class ThresholdMode { rel, abs };

// The arguments of Python's ReduceLROnPlateau, with its defaults.
struct PlateauOptions {
  Mode mode = Mode::min;       // whether a lower or a higher metric is better
  double factor = 0.1;         // new learning rate = old one * factor; below 1
  std::int64_t patience = 10;  // steps without an improvement that change nothing yet
  double threshold = 1e-4;
  ThresholdMode threshold_mode = ThresholdMode::rel;
  std::int64_t cooldown = 0;         // steps after a reduction in which none counts as bad
  std::vector<double> min_lr = {0};  // one for all groups, or one for each
  double eps = 1e-8;                 // a reduction by no more than this is left out
};

// Reduces the learning rates when a metric has stopped improving. Error(invalid) where factor is
// not below 1, or min_lr has neither one number nor one for each group.
class ReduceLROnPlateau {
 public:
  explicit ReduceLROnPlateau(torch::optim::Optimizer& optimizer, const PlateauOptions& options = {})
      : optimizer_(&optimizer) {
    if (!(options.factor < 1))
      throw Error(ErrorCode::invalid, "factor is " + repr(Value(options.factor)) +
                                          ", it has to be below 1: what the learning rate is "
                                          "multiplied by");
    const std::size_t groups = optimizer.param_groups().size(), rates = options.min_lr.size();
    if (rates != 1 && rates != groups)
      throw Error(ErrorCode::invalid, "min_lr has " + std::to_string(rates) +
                                          " numbers: it takes one for all groups, or one for each "
                                          "of the " +
                                          std::to_string(groups));
    fields_.factor = options.factor;
    if (rates == 1) fields_.default_min_lr = options.min_lr[0];
    fields_.min_lrs = rates == 1 ? std::vector(groups, options.min_lr[0]) : options.min_lr;
    fields_.patience = options.patience;
    fields_.cooldown = options.cooldown;
    fields_.eps = options.eps;
    fields_.last_lr = detail::learning_rates(optimizer);
    fields_.mode = options.mode == Mode::min ? "min" : "max";
    fields_.threshold = options.threshold;
    fields_.threshold_mode = options.threshold_mode == ThresholdMode::rel ? "rel" : "abs";
    fields_.best = fields_.mode_worse = worst();
  }

  // With the metric of an epoch, after validation. NaN is no improvement.
  void step(double metric) {
    ++fields_.last_epoch;
    if (is_better(metric)) {
      fields_.best = metric;
      fields_.num_bad_epochs = 0;
    } else {
      ++fields_.num_bad_epochs;
    }
    if (in_cooldown()) {
      --fields_.cooldown_counter;
      fields_.num_bad_epochs = 0;
    }
    if (fields_.num_bad_epochs > fields_.patience) {
      reduce();
      fields_.cooldown_counter = fields_.cooldown;
      fields_.num_bad_epochs = 0;
    }
    fields_.last_lr = detail::learning_rates(*optimizer_);
  }
  // A tensor of one element: a loss.
  void step(const at::Tensor& metric) { step(metric.item<double>()); }

  const std::vector<double>& get_last_lr() const noexcept { return fields_.last_lr; }
  std::int64_t last_epoch() const noexcept { return fields_.last_epoch; }
  double best() const noexcept { return fields_.best; }
  std::int64_t num_bad_epochs() const noexcept { return fields_.num_bad_epochs; }
  bool in_cooldown() const noexcept { return fields_.cooldown_counter > 0; }

  Value state_dict() const { return detail::write_fields(fields_); }
  // Takes the arguments of the constructor from the file, too, as Python's does.
  void load_state_dict(const Value& value) {
    Problems problems;
    Fields loaded = read(value, problems);
    detail::throw_if_any(problems, "the ReduceLROnPlateau");
    fields_ = std::move(loaded);
    fields_.mode_worse = worst();
  }
  void check(const Value& value, Problems& problems) const { read(value, problems); }

 private:
  struct Fields {
    double factor = 0;
    std::optional<double> default_min_lr;
    std::vector<double> min_lrs;
    std::int64_t patience = 0, cooldown = 0;
    double eps = 0;
    std::int64_t last_epoch = 0;
    std::vector<double> last_lr;
    double mode_worse = 0;
    std::string mode;
    double threshold = 0;
    std::string threshold_mode;
    double best = 0;
    std::int64_t cooldown_counter = 0, num_bad_epochs = 0;

    static void visit(auto& self, auto&& v) {
      v.field("factor", self.factor);
      v.field("default_min_lr", self.default_min_lr);
      v.field("min_lrs", self.min_lrs);
      v.field("patience", self.patience);
      v.field("cooldown", self.cooldown);
      v.field("eps", self.eps);
      v.field("last_epoch", self.last_epoch);
      v.field("_last_lr", self.last_lr);
      v.field("mode_worse", self.mode_worse);
      v.field("mode", self.mode);
      v.field("threshold", self.threshold);
      v.field("threshold_mode", self.threshold_mode);
      v.field("best", self.best);
      v.field("cooldown_counter", self.cooldown_counter);
      v.field("num_bad_epochs", self.num_bad_epochs);
    }
  };

  Fields read(const Value& value, Problems& problems) const {
    const std::size_t before = problems.size();
    Fields loaded = detail::read_fields(fields_, value, "ReduceLROnPlateau", problems);
    if (problems.size() != before) return loaded;
    const std::size_t groups = optimizer_->param_groups().size();
    if (loaded.mode != "min" && loaded.mode != "max")
      problems.push_back("mode \"" + loaded.mode + "\" is neither \"min\" nor \"max\"");
    if (loaded.threshold_mode != "rel" && loaded.threshold_mode != "abs")
      problems.push_back("threshold_mode \"" + loaded.threshold_mode +
                         "\" is neither \"rel\" nor \"abs\"");
    if (!loaded.default_min_lr && loaded.min_lrs.size() != groups)
      problems.push_back("min_lrs has " + std::to_string(loaded.min_lrs.size()) +
                         " numbers in the file, the optimizer here " + std::to_string(groups) +
                         " groups");
    return loaded;
  }

  double worst() const {
    const double infinity = std::numeric_limits<double>::infinity();
    return fields_.mode == "min" ? infinity : -infinity;
  }
  // In Python's order of operations: it is to be the same to the last bit.
  bool is_better(double x) const {
    const bool is_min = fields_.mode == "min";
    if (fields_.threshold_mode == "rel")
      return is_min ? x < fields_.best * (1 - fields_.threshold)
                    : x > fields_.best * (fields_.threshold + 1);
    return is_min ? x < fields_.best - fields_.threshold : x > fields_.best + fields_.threshold;
  }
  void reduce() {
    auto& groups = optimizer_->param_groups();
    if (groups.size() != fields_.min_lrs.size()) {
      if (!fields_.default_min_lr)
        throw Error(ErrorCode::invalid,
                    "the optimizer has " + std::to_string(groups.size()) +
                        " parameter groups, and min_lr of this ReduceLROnPlateau is for " +
                        std::to_string(fields_.min_lrs.size()) +
                        ": make the scheduler after the last group was added");
      fields_.min_lrs.assign(groups.size(), *fields_.default_min_lr);
    }
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const double old_rate = groups[i].options().get_lr();
      const double new_rate = std::max(old_rate * fields_.factor, fields_.min_lrs[i]);
      if (old_rate - new_rate > fields_.eps) groups[i].options().set_lr(new_rate);
    }
  }

  torch::optim::Optimizer* optimizer_;
  Fields fields_;
};

template <>
struct Adapter<StepLR> : detail::MemberAdapter<StepLR> {};
template <>
struct Adapter<ReduceLROnPlateau> : detail::MemberAdapter<ReduceLROnPlateau> {};

}  // namespace perdure
