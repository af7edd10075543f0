// ResumableLoader: the rest of an epoch is what it would have been.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "format/memory_source.hpp"

namespace perdure::test {
namespace {

namespace samplers = torch::data::samplers;
using torch::data::DataLoaderOptions;

constexpr std::size_t kSamples = 23;
constexpr std::int64_t kEpochs = 2;

// Which samples were loaded; workers have copies of a dataset.
struct Loaded {
  std::mutex mutex;
  std::vector<std::size_t> indices;
};

struct Numbers : torch::data::datasets::Dataset<Numbers, std::size_t> {
  std::shared_ptr<Loaded> loaded = std::make_shared<Loaded>();
  std::size_t broken = static_cast<std::size_t>(-1);  // the sample that throws
  std::size_t get(std::size_t index) override {
    if (index == broken) throw std::runtime_error("sample " + std::to_string(index));
    const std::lock_guard lock(loaded->mutex);
    loaded->indices.push_back(index);
    return index;
  }
  std::optional<std::size_t> size() const override { return kSamples; }
};

// Draws with replacement, in reset(), from a generator of its own.
struct OwnSampler : samplers::Sampler<> {
  std::mt19937 generator{5};
  std::vector<std::size_t> indices;
  std::size_t next_index = 0;
  void reset(std::optional<std::size_t> = std::nullopt) override {
    indices.clear();
    for (std::size_t i = 0; i < kSamples; ++i) indices.push_back(generator() % kSamples);
    next_index = 0;
  }
  std::optional<std::vector<std::size_t>> next(std::size_t batch_size) override {
    const std::size_t begin = next_index, end = std::min(begin + batch_size, indices.size());
    next_index = end;
    if (begin == end) return std::nullopt;
    return std::vector(indices.begin() + static_cast<std::ptrdiff_t>(begin),
                       indices.begin() + static_cast<std::ptrdiff_t>(end));
  }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}
};

}  // namespace
}  // namespace perdure::test

template <>
struct perdure::Adapter<perdure::test::OwnSampler> {
  static constexpr Role role = Role::other;
  static Value state_dict(const test::OwnSampler& x) {
    std::ostringstream text;
    text << x.generator;
    return text.str();
  }
  static void load_state_dict(test::OwnSampler& x, const Value& value) {
    std::istringstream(value.as_string()) >> x.generator;
  }
};

namespace perdure::test {
namespace {

// A loop that draws random numbers as it trains: by these, too, one sees whether all is as it would
// have been.
template <class Sampler>
struct Run {
  using Seen = std::vector<std::pair<std::vector<std::size_t>, double>>;
  Numbers dataset;
  ResumableLoader<Numbers, Sampler> data;
  TrainingState state;
  std::int64_t epoch = 0;
  Seen seen;

  explicit Run(Sampler sampler, DataLoaderOptions options, Numbers numbers = {})
      : dataset(numbers), data(numbers, std::move(sampler), options) {
    state.add("data", data);
    state.add("epoch", epoch);
    state.add("optimizer", nullptr);
  }
  // Everything seen until the step, and the state there as a file.
  std::string train(std::int64_t until = -1) {
    for (; epoch < kEpochs; ++epoch) {
      if constexpr (detail::HasEpoch<Sampler>)
        data.sampler().set_epoch(static_cast<std::size_t>(epoch));
      for (auto& batch : data) {
        const double noise = torch::dropout(torch::rand({4}), 0.5, true).sum().item<double>();
        seen.emplace_back(batch, noise);
        if (++state.step == until) return file_of(state.state_dict());
      }
    }
    return "";
  }
  void restore(const std::string& file) {
    state.restore(CheckpointFile::open(source_of(file)));
    dataset.loaded->indices.clear();
  }
  // Sorted.
  std::vector<std::size_t> loaded() const {
    std::vector<std::size_t> indices = dataset.loaded->indices;
    std::ranges::sort(indices);
    return indices;
  }
};

template <class Sampler>
Sampler make_sampler() {
  if constexpr (std::derived_from<Sampler, OwnSampler>)
    return {};
  else if constexpr (std::derived_from<Sampler, samplers::DistributedSampler<>>)
    return Sampler(2 * kSamples, 2, 1);
  else
    return Sampler(kSamples);
}

template <class Sampler>
class LoaderWith : public testing::Test {};
using Samplers = testing::Types<samplers::RandomSampler, samplers::SequentialSampler,
                                samplers::DistributedRandomSampler,
                                samplers::DistributedSequentialSampler, OwnSampler>;
TYPED_TEST_SUITE(LoaderWith, Samplers);

// Stops at every batch.
template <class Sampler>
void expect_the_same_rest(const DataLoaderOptions& options) {
  torch::manual_seed(1);
  Run<Sampler> whole(make_sampler<Sampler>(), options);
  whole.train();
  ASSERT_EQ(whole.seen.size(), options.drop_last() ? 10U : 12U);
  const auto rng = detail::default_generator_state();
  for (std::size_t stop = 1; stop <= whole.seen.size(); ++stop) {
    torch::manual_seed(1);
    Run<Sampler> stopped(make_sampler<Sampler>(), options);
    const std::string file = stopped.train(static_cast<std::int64_t>(stop));
    torch::manual_seed(2);
    Run<Sampler> resumed(make_sampler<Sampler>(), options);
    resumed.restore(file);
    resumed.train();
    stopped.seen.insert(stopped.seen.end(), resumed.seen.begin(), resumed.seen.end());
    EXPECT_EQ(stopped.seen, whole.seen) << stop;
    std::vector<std::size_t> received;
    for (const auto& [batch, noise] : resumed.seen)
      received.insert(received.end(), batch.begin(), batch.end());
    std::ranges::sort(received);
    EXPECT_EQ(resumed.loaded(), received);  // nothing else
    EXPECT_TRUE(detail::same_bits(to_tensor(rng), to_tensor(detail::default_generator_state())));
  }
}

TYPED_TEST(LoaderWith, TheRestIsTheSame) {
  for (const std::size_t workers : {0, 2})
    for (const bool drop_last : {false, true})
      expect_the_same_rest<TypeParam>(DataLoaderOptions(4).workers(workers).drop_last(drop_last));
}

// With replacement, one batch at a time.
struct InNextSampler : OwnSampler {
  std::optional<std::vector<std::size_t>> next(std::size_t batch_size) override {
    auto batch = OwnSampler::next(batch_size);
    if (batch)
      for (std::size_t& index : *batch)
        index = static_cast<std::size_t>(torch::randint(kSamples, {}).item<std::int64_t>());
    return batch;
  }
};

TEST(ResumableLoader, WithoutWorkersASamplerMayDrawInNext) {
  expect_the_same_rest<InNextSampler>(DataLoaderOptions(4));
}

using RandomRun = Run<samplers::RandomSampler>;

TEST(ResumableLoader, BehavesAsTheDataLoaderDoes) {
  const auto train = [](auto&& loader) {
    RandomRun::Seen seen;
    for (int epoch = 0; epoch < 2; ++epoch)
      for (auto& batch : loader) seen.emplace_back(batch, torch::rand({}).item<double>());
    return seen;
  };
  const auto options = DataLoaderOptions(4).workers(2);
  torch::manual_seed(1);
  const auto plain =
      torch::data::make_data_loader(Numbers(), samplers::RandomSampler(kSamples), options);
  const auto expected = train(*plain);
  torch::manual_seed(1);
  ResumableLoader ours(Numbers(), samplers::RandomSampler(kSamples), options);
  EXPECT_EQ(train(ours), expected);
  EXPECT_EQ(ours.options().workers, 2U);
}

TEST(ResumableLoader, HasPythonsKeys) {
  RandomRun run(samplers::RandomSampler(kSamples), DataLoaderOptions(4));
  EXPECT_EQ(run.data.state_dict()["received"].as_int(), 0);
  EXPECT_TRUE(run.data.state_dict()["start"].is_none());
  run.train(2);
  // The loop was left.
  EXPECT_EQ(run.data.received(), 0);
  for (auto& batch : run.data) {
    EXPECT_EQ(batch.size(), 4U);
    EXPECT_EQ(run.data.received(), 1);
    const Value state = run.data.state_dict();
    EXPECT_EQ(state["received"].as_int(), 1);
    EXPECT_EQ(state["start"]["torch"].as_tensor().numel(), 5056U);
    EXPECT_TRUE(state["start"]["own"].as_items().empty());
    EXPECT_TRUE(state["start"]["epochs"].as_items().empty());
    break;
  }
}

TEST(ResumableLoader, ALoopThatWasLeftEndsTheEpoch) {
  for (const std::size_t workers : {0, 2}) {
    RandomRun run(samplers::RandomSampler(kSamples), DataLoaderOptions(4).workers(workers));
    for (int i = 0; i < 3; ++i) {
      for ([[maybe_unused]] auto& batch : run.data) break;
      EXPECT_TRUE(run.data.state_dict()["start"].is_none());
    }
    std::size_t samples = 0;
    for (auto& batch : run.data) samples += batch.size();
    EXPECT_EQ(samples, kSamples);
  }
}

TEST(ResumableLoader, SavedAgainBeforeItsLoopItIsWhereItWas) {
  torch::manual_seed(1);
  RandomRun first(samplers::RandomSampler(kSamples), DataLoaderOptions(4)),
      second(samplers::RandomSampler(kSamples), DataLoaderOptions(4));
  first.restore(first.train(3));
  const std::string again = file_of(first.state.state_dict());
  first.seen.clear();
  first.train();
  second.restore(again);
  second.train();
  EXPECT_EQ(first.seen, second.seen);
  EXPECT_EQ(first.seen.size(), 9U);
}

TEST(ResumableLoader, ARestoreInTheMiddleOfALoopIsForTheNextOne) {
  torch::manual_seed(1);
  RandomRun run(samplers::RandomSampler(kSamples), DataLoaderOptions(4).workers(2));
  const std::string file = run.train(4);
  std::size_t batches = 0;
  for ([[maybe_unused]] auto& batch : run.data) {
    if (++batches == 2) run.restore(file);
    if (batches >= 2) {
      EXPECT_EQ(run.data.received(), 4);
    }
  }
  EXPECT_EQ(batches, 6U);
  EXPECT_EQ(run.data.received(), 4);
  batches = 0;
  for ([[maybe_unused]] auto& batch : run.data) ++batches;
  EXPECT_EQ(batches, 2U);
}

// What a worker throws comes out of the loop; the next one begins anew.
TEST(ResumableLoader, AnErrorInAWorkerEndsTheEpoch) {
  for (const std::size_t workers : {0, 2}) {
    Numbers numbers;
    numbers.broken = 9;
    RandomRun run(samplers::RandomSampler(kSamples), DataLoaderOptions(4).workers(workers),
                  numbers);
    for (int i = 0; i < 2; ++i) {
      EXPECT_ANY_THROW(for ([[maybe_unused]] auto& batch : run.data){});
      EXPECT_EQ(run.data.received(), 0);
    }
  }
}

TEST(ResumableLoader, TakesMappedDatasets) {
  auto data =
      ResumableLoader(torch::data::datasets::TensorDataset(torch::arange(10))
                          .map(torch::data::transforms::Stack<torch::data::TensorExample>()),
                      samplers::SequentialSampler(10), DataLoaderOptions(4));
  std::vector<std::int64_t> sizes;
  for (auto& batch : data) sizes.push_back(batch.data.size(0));
  EXPECT_EQ(sizes, (std::vector<std::int64_t>{4, 4, 2}));
  EXPECT_EQ(std::ranges::distance(data), 3);
}

template <class Loader>
std::string refusal(Loader& data, const Value& value) {
  try {
    data.load_state_dict(value);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid);
    return error.what();
  }
  return "";
}

TEST(ResumableLoader, RefusesWhatItCannotDrawAgain) {
  RandomRun run(samplers::RandomSampler(kSamples), DataLoaderOptions(4));
  const auto start = [](std::int64_t received, std::initializer_list<Dict::Entry> entries) {
    return Dict{{"received", received}, {"start", Dict(entries)}};
  };
  const Value torch_state = detail::default_generator_state();
  const Value none = Value::list({}), one = Value::list({1});
  const auto says = [&](const Value& value, const char* text) {
    EXPECT_NE(refusal(run.data, value).find(text), std::string::npos) << refusal(run.data, value);
  };
  says(Dict{{"received", 1}}, "not the state of a ResumableLoader");
  says(3, "not the state of a ResumableLoader");
  says(start(-1, {}), "not the state of a ResumableLoader");
  says(start(2, {}), "\"start\" is not what the order");
  says(Dict{{"received", 2}, {"start", nullptr}}, "\"start\" is not what the order");
  says(start(2, {{"torch", torch_state}, {"own", none}, {"epochs", none}, {"python", 1}}),
       "drawn by a DataLoader of Python");
  says(start(2, {{"torch", torch_state}, {"own", none}, {"epochs", one}}), "another kind");
  says(start(2, {{"torch", torch_state}, {"own", one}, {"epochs", none}}), "another kind");
  says(start(2, {{"torch", 1}, {"own", none}, {"epochs", none}}), "a generator's state");
  EXPECT_EQ(refusal(run.data, start(2, {{"torch", torch_state}, {"own", none}, {"epochs", none}})),
            "");
  EXPECT_EQ(refusal(run.data, Dict{{"received", 0}, {"start", nullptr}}), "");
}

}  // namespace
}  // namespace perdure::test
