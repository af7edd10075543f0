// ResumableLoader: LibTorch's DataLoader with a place in the epoch that is part of a TrainingState.
// Part of perdure/torch.hpp: include that.
//
//   perdure::ResumableLoader data(dataset, torch::data::samplers::RandomSampler(n),
//                                 torch::data::DataLoaderOptions(32).workers(2));
//   state.add("data", data);
//   checkpoints.restore(state);
//   for (; epoch < epochs; ++epoch)
//     for (auto& batch : data) {  // after a restore: what is left of the epoch
//       ...
//       if (++state.step % 1000 == 0) checkpoints.save(state);
//     }
//
// What counts are the batches that the loop has received, whatever workers have prepared beyond
// them: train on a batch, then save. Batches that were received before are not loaded again; only
// their indices are drawn. The rest of the run is the same to the bit: drawing the order again does
// not show in the random numbers. Leaving the loop early ends the epoch.
//
// The order comes back for every sampler that draws it in reset(), from LibTorch's default CPU
// generator or from an epoch with set_epoch() and epoch(): those of LibTorch do. A sampler with a
// random state of its own takes part with a perdure::Adapter, whose state_dict() is asked for
// before each reset(). One that draws in next() goes on exactly without workers only: with them, it
// has drawn ahead.
//
// What cannot be promised: with workers, random transforms draw from the default generator, which
// all threads share, so that no two runs are the same, with or without a restart; draw from a
// generator that the index seeds. With enforce_ordering(false), which batches were received is
// chance: as many as had overtaken others at the save are seen twice, or not at all, in that epoch.
// A stateful dataset, or a stream, cannot skip: it is refused when it is compiled. And an order is
// drawn by the language that began the epoch: at its end, a run can go on in the other.
//
// Not synchronised: for the thread that trains, and one loop at a time.
#pragma once

#include <torch/data/dataloader/stateless.h>
#include <torch/data/dataloader_options.h>
#include <torch/data/samplers/stream.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <perdure/torch/member_adapter.hpp>
#include <perdure/torch/rng.hpp>
#include <string>
#include <type_traits>
#include <utility>

namespace perdure {

namespace detail {

template <class S>
concept HasEpoch = requires(S& sampler, std::size_t epoch) {
  sampler.set_epoch(epoch);
  { sampler.epoch() } -> std::convertible_to<std::size_t>;
};

template <class S>
concept HasAdapter = requires(S& sampler, const Value& value) {
  { Adapter<S>::state_dict(sampler) } -> std::same_as<Value>;
  Adapter<S>::load_state_dict(sampler, value);
};

// Of LibTorch's default generator on the CPU.
inline Value default_generator_state() {
  return perdure::state_dict(at::globalContext().defaultGenerator(at::kCPU));
}
inline void put_default_generator_state(const Value& value) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  perdure::load_state_dict(generator, value);
}

// The sampler of a ResumableLoader, and how far the loop is in the order that it gives.
template <class Sampler>
struct EpochOrder {
  Sampler sampler;
  std::size_t batch_size;
  std::int64_t received = 0;      // batches of this epoch
  Value start{};                  // what its order was drawn from
  std::optional<Value> resume{};  // the same of the next one, where that is the rest of one
  std::uint64_t running = 0;      // the iteration that counts; 0: none
  std::uint64_t iterations = 0;

  // The keys are those of Python's ResumableLoader, and "sampler".
  Value generators() const {
    Value::Items epochs;
    if constexpr (HasEpoch<Sampler>) epochs.emplace_back(sampler.epoch());
    Dict state{{"torch", default_generator_state()},
               {"own", Value::list({})},
               {"epochs", Value::list(std::move(epochs))}};
    if constexpr (HasAdapter<Sampler>) state.set("sampler", Adapter<Sampler>::state_dict(sampler));
    return state;
  }
  void put_generators(const Value& state) {
    put_default_generator_state(state["torch"]);
    if constexpr (HasEpoch<Sampler>)
      sampler.set_epoch(static_cast<std::size_t>(state["epochs"][0].as_int()));
    if constexpr (HasAdapter<Sampler>) Adapter<Sampler>::load_state_dict(sampler, state["sampler"]);
  }

  void begin() {
    if (resume) put_generators(*resume);
    start = resume ? *resume : generators();
    sampler.reset();
    if (!resume) received = 0;
    for (std::int64_t i = 0; i < received; ++i)
      if (!sampler.next(batch_size)) break;
  }
  void finish(std::uint64_t iteration) noexcept {
    if (running != iteration) return;
    running = 0;
    received = 0;
  }
};

// What the DataLoader has as its sampler: it keeps that to itself, and resets it.
template <class Sampler>
class OrderHandle {
 public:
  using BatchRequestType = typename Sampler::BatchRequestType;
  explicit OrderHandle(std::shared_ptr<EpochOrder<Sampler>> order) : order_(std::move(order)) {}
  void reset() { order_->begin(); }
  std::optional<BatchRequestType> next(std::size_t batch_size) {
    return order_->sampler.next(batch_size);
  }

 private:
  std::shared_ptr<EpochOrder<Sampler>> order_;
};

template <class Dataset, class Sampler>
struct OrderedDataLoader : torch::data::StatelessDataLoader<Dataset, OrderHandle<Sampler>> {
  using Base = torch::data::StatelessDataLoader<Dataset, OrderHandle<Sampler>>;
  using Base::Base;
  using Base::next;
  void restart() {
    this->shuttle_.drain();  // what a loop that was left has not taken; begin() refuses to go on
    this->begin();
  }
};

}  // namespace detail

template <class Dataset, class Sampler>
class ResumableLoader {
  static_assert(!Dataset::is_stateful,
                "a stateful dataset has its place in itself: give it a perdure::Adapter");
  static_assert(
      !std::is_same_v<typename Sampler::BatchRequestType, torch::data::samplers::BatchSize>,
      "a stream has its place in itself: give its dataset a perdure::Adapter");
  using Order = detail::EpochOrder<Sampler>;
  using Loader = detail::OrderedDataLoader<Dataset, Sampler>;

 public:
  using Batch = typename Dataset::BatchType;
  class Iterator;

  // As torch::data::make_data_loader. A perdure::TrainingState keeps its address.
  ResumableLoader(Dataset dataset, Sampler sampler, torch::data::DataLoaderOptions options = {})
      : order_(std::make_shared<Order>(Order{std::move(sampler), options.batch_size()})),
        loader_(std::move(dataset), detail::OrderHandle<Sampler>(order_), options) {}
  ResumableLoader(const ResumableLoader&) = delete;
  ResumableLoader& operator=(const ResumableLoader&) = delete;

  // Begins an epoch, or what is left of one. The iterator lives no longer than the loader.
  Iterator begin() {
    const bool resumes = order_->resume.has_value();
    const Value before = resumes ? detail::default_generator_state() : Value();
    order_->running = 0;
    loader_.restart();
    if (resumes) detail::put_default_generator_state(before);
    order_->resume.reset();
    order_->running = ++order_->iterations;
    return Iterator(loader_, order_);
  }
  std::default_sentinel_t end() const noexcept { return {}; }

  // For set_epoch().
  Sampler& sampler() noexcept { return order_->sampler; }
  const torch::data::FullDataLoaderOptions& options() const noexcept { return loader_.options(); }
  // Batches of this epoch that the loop has received; 0 between two epochs.
  std::int64_t received() const noexcept { return order_->received; }

  Value state_dict() const {
    const Value start = order_->resume.value_or(order_->start);
    return Dict{{"received", order_->received}, {"start", order_->received ? start : Value()}};
  }
  // The next loop is the rest of that epoch. One that is under way goes on as it was, and counts no
  // more.
  void load_state_dict(const Value& value) {
    Problems problems;
    check(value, problems);
    detail::throw_if_any(problems, "the ResumableLoader");
    order_->running = 0;
    order_->received = value["received"].as_int();
    order_->resume.reset();
    if (order_->received != 0) order_->resume = value["start"];
  }
  void check(const Value& value, Problems& problems) const;

 private:
  std::shared_ptr<Order> order_;
  Loader loader_;
};

template <class Dataset, class Sampler>
class ResumableLoader<Dataset, Sampler>::Iterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = Batch;
  using difference_type = std::ptrdiff_t;
  using pointer = Batch*;
  using reference = Batch&;

  Batch& operator*() const { return *iteration_->batch; }
  Batch* operator->() const { return &*iteration_->batch; }
  Iterator& operator++() {
    iteration_->advance();
    return *this;
  }
  void operator++(int) { ++*this; }
  friend bool operator==(const Iterator& x, std::default_sentinel_t) {
    return !x.iteration_->batch.has_value();
  }

 private:
  friend class ResumableLoader;
  struct Iteration {
    Loader& loader;
    std::shared_ptr<Order> order;
    std::uint64_t number;
    std::optional<Batch> batch{};

    ~Iteration() { order->finish(number); }
    void advance() {
      batch = loader.next();
      if (!batch)
        order->finish(number);
      else if (order->running == number)
        ++order->received;
    }
  };
  Iterator(Loader& loader, const std::shared_ptr<Order>& order)
      : iteration_(new Iteration{loader, order, order->running}) {
    iteration_->advance();
  }

  std::shared_ptr<Iteration> iteration_;
};

template <class Dataset, class Sampler>
void ResumableLoader<Dataset, Sampler>::check(const Value& value, Problems& problems) const {
  if (!value.contains("received") || !value.contains("start") ||
      value["received"].kind() != Kind::integer || value["received"].as_int() < 0)
    return problems.push_back(
        "not the state of a ResumableLoader: that is a dict of \"received\" and \"start\"");
  if (value["received"].as_int() == 0) return;
  const Value& start = value["start"];
  if (start.contains("python"))
    return problems.push_back(
        "the order of this epoch was drawn by a DataLoader of Python, and C++ cannot draw it: a "
        "run "
        "can go on in the other language at the end of an epoch");
  if (!start.contains("torch") || !start.contains("own") || !start.contains("epochs") ||
      !start["own"].is_sequence() || !start["epochs"].is_sequence())
    return problems.push_back("\"start\" is not what the order of an epoch is drawn from");
  detail::check_generator(at::globalContext().defaultGenerator(at::kCPU), start["torch"], problems);
  const auto& epochs = start["epochs"].as_items();
  if (epochs.size() != (detail::HasEpoch<Sampler> ? 1 : 0) ||
      (!epochs.empty() && epochs[0].kind() != Kind::integer) || !start["own"].as_items().empty() ||
      start.contains("sampler") != detail::HasAdapter<Sampler>)
    problems.push_back("the order of this epoch was drawn by a sampler of another kind");
}

template <class Dataset, class Sampler>
struct Adapter<ResumableLoader<Dataset, Sampler>>
    : detail::MemberAdapter<ResumableLoader<Dataset, Sampler>> {};

}  // namespace perdure
