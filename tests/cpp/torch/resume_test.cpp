// A run that is stopped and resumed makes the same bits as one that is not, and it takes all of the
// state to do so.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>
#include <set>

#include "engine/gated_storage.hpp"
#include "expect_error.hpp"

namespace {

using perdure::Dict;
using perdure::Error;
using perdure::ErrorCode;
using perdure::Value;
namespace nn = torch::nn;
namespace optim = torch::optim;

class Directory {
 public:
  Directory() {
    path_ = std::filesystem::temp_directory_path() / ("perdure_resume_" + std::to_string(getpid()));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Dropout, batch norm, shuffled data, momentum and a schedule: everything that has a memory.
struct Training {
  nn::Sequential model{nn::Linear(4, 16), nn::BatchNorm1d(16), nn::ReLU(), nn::Dropout(0.3),
                       nn::Linear(16, 1)};
  optim::SGD optimizer{model->parameters(), optim::SGDOptions(0.05).momentum(0.9).nesterov(true)};
  optim::StepLR scheduler{optimizer, 2, 0.5};
  perdure::ReduceLROnPlateau plateau{optimizer, {.factor = 0.9, .patience = 1, .threshold = 0.05}};
  at::Generator shuffling = at::make_generator<at::CPUGeneratorImpl>(3);
  int epoch = 0;
  double best_loss = 1e9;
  perdure::TrainingState state;
  std::function<void()> before_step = [] {};

  explicit Training(std::uint64_t seed) {
    torch::set_num_threads(1);
    torch::manual_seed(seed);
    for (auto& p : model->parameters()) nn::init::normal_(p, 0, 0.2);
    state.add("model", model);
    state.add("optimizer", optimizer);
    state.add("scheduler", scheduler);
    state.add("plateau", plateau);
    state.add("shuffling", shuffling);
    state.add("epoch", epoch);
    state.add("best_loss", best_loss);
  }
  void train_until(int end) {
    const auto x = torch::sin(torch::arange(160, torch::kFloat)).reshape({40, 4});
    const auto y = x.prod(1, true);
    for (; epoch < end; ++epoch) {
      for (const auto& batch : torch::randperm(40, shuffling).split(8)) {
        optimizer.zero_grad();
        const auto loss = torch::mse_loss(model->forward(x.index({batch})), y.index({batch}));
        loss.backward();
        before_step();
        optimizer.step();
        ++state.step;
        best_loss = std::min(best_loss, loss.item<double>());
      }
      scheduler.step();
      plateau.step(torch::tensor(best_loss));
    }
  }
};

bool same(const Value& a, const Value& b);
bool same_items(const Value& a, const Value& b) {
  const auto &x = a.as_items(), &y = b.as_items();
  return std::equal(x.begin(), x.end(), y.begin(), y.end(), same);
}
bool same_entries(const Value& a, const Value& b) {
  const auto equal = [](const auto& x, const auto& y) {
    return same(x.first, y.first) && same(x.second, y.second);
  };
  return std::equal(a.as_dict().begin(), a.as_dict().end(), b.as_dict().begin(), b.as_dict().end(),
                    equal);
}
bool same(const Value& a, const Value& b) {
  if (a.kind() != b.kind()) return false;
  if (a.kind() == perdure::Kind::tensor)
    return a.as_tensor().dtype == b.as_tensor().dtype &&
           a.as_tensor().shape == b.as_tensor().shape &&
           perdure::detail::same_bits(perdure::to_tensor(a), perdure::to_tensor(b));
  if (a.is_mapping()) return same_entries(a, b);
  if (a.is_sequence()) return same_items(a, b);
  return perdure::repr(a, 1000) == perdure::repr(b, 1000);
}

TEST(Resume, IsBitExact) {
  const Directory directory;
  Training whole(1);
  whole.train_until(4);
  {
    perdure::CheckpointManager checkpoints(directory.path());
    checkpoints.save(whole.state, {{"loss", whole.best_loss}}).wait();
    checkpoints.close();
  }
  whole.train_until(9);

  Training resumed(2);
  perdure::CheckpointManager checkpoints(directory.path());
  EXPECT_EQ(checkpoints.latest()->info.libraries.at("torch"), TORCH_VERSION);
  const auto restored = checkpoints.restore(resumed.state);
  ASSERT_TRUE(restored);
  EXPECT_EQ(resumed.epoch, 4);
  EXPECT_EQ(resumed.state.step, 20);
  EXPECT_EQ(restored->info.optimizers.at("optimizer").class_name, "SGD");
  EXPECT_EQ(restored->info.optimizers.at("optimizer").param_names[0][0], "model.0.weight");
  resumed.train_until(9);
  EXPECT_TRUE(same(whole.state.state_dict(), resumed.state.state_dict()));
}

// Saves after every epoch without waiting, and resumes from the fourth.
TEST(Resume, IsBitExactWithEveryCapture) {
  for (const auto capture :
       {perdure::Capture::eager, perdure::Capture::overlapped, perdure::Capture::checked}) {
    const Directory directory;
    Training whole(1);
    {
      perdure::CheckpointManager checkpoints(directory.path(),
                                             {.keep_last = 9, .capture = capture});
      checkpoints.prepare(whole.state);
      whole.before_step = [&] { checkpoints.fence(); };
      for (int epoch = 1; epoch <= 9; ++epoch) {
        whole.train_until(epoch);
        checkpoints.save(whole.state);
      }
      checkpoints.close();
    }
    Training resumed(2);
    perdure::CheckpointManager checkpoints(directory.path());
    ASSERT_TRUE(checkpoints.restore(resumed.state, {.step = 20}));
    EXPECT_EQ(resumed.epoch, 4);
    resumed.train_until(9);
    EXPECT_TRUE(same(whole.state.state_dict(), resumed.state.state_dict()));
  }
}

// The step moves the version counters, so that the save knows.
TEST(Resume, AForgottenFenceFailsTheSave) {
  Training training(1);
  training.train_until(1);
  const auto storage = std::make_shared<perdure::test::GatedStorage>();
  perdure::CheckpointManager checkpoints(
      storage, {.capture = perdure::Capture::overlapped, .warning = [](const std::string&) {}});
  storage->before_create.close();  // so that nothing is copied behind the training
  const perdure::SaveHandle handle = checkpoints.save(training.state);
  training.train_until(2);
  storage->before_create.open();
  EXPECT_ERROR(invalid, "optimizer: parameter 0", handle.wait());
  EXPECT_ERROR(invalid, "fence()", handle.wait());
  EXPECT_TRUE(storage->list().empty());
  training.before_step = [&] { checkpoints.fence(); };
  const perdure::SaveHandle next = checkpoints.save(training.state);
  training.train_until(3);
  next.wait();
}

// Its step calls the closure several times, and makes most of its state anew.
struct LbfgsTraining {
  nn::Sequential model{nn::Linear(4, 8), nn::Tanh(), nn::Linear(8, 1)};
  optim::LBFGS optimizer{model->parameters(), optim::LBFGSOptions(0.1).max_iter(3).history_size(4)};
  perdure::TrainingState state;

  LbfgsTraining() {
    state.add("model", model);
    state.add("optimizer", optimizer);
  }
  void train_until(std::int64_t end, const std::function<void()>& before_step = [] {}) {
    const auto x = torch::sin(torch::arange(80, torch::kFloat)).reshape({20, 4});
    for (; state.step < end; ++state.step) {
      before_step();
      optimizer.step([&] {
        optimizer.zero_grad();
        const auto loss = torch::mse_loss(model->forward(x), x.prod(1, true));
        loss.backward();
        return loss;
      });
    }
  }
};

TEST(Resume, OfLbfgsIsBitExactWithEveryCapture) {
  for (const auto capture :
       {perdure::Capture::eager, perdure::Capture::overlapped, perdure::Capture::checked}) {
    const Directory directory;
    LbfgsTraining whole;
    {
      perdure::CheckpointManager checkpoints(directory.path(),
                                             {.keep_last = 9, .capture = capture});
      for (int step = 1; step <= 6; ++step) {
        whole.train_until(step, [&] { checkpoints.fence(); });
        checkpoints.save(whole.state);
      }
      checkpoints.close();
    }
    LbfgsTraining resumed;
    perdure::CheckpointManager checkpoints(directory.path());
    ASSERT_TRUE(checkpoints.restore(resumed.state, {.step = 3}));
    resumed.train_until(6);
    EXPECT_TRUE(same(whole.state.state_dict(), resumed.state.state_dict()));
  }
}

TEST(Resume, OfLbfgsSeesAForgottenFence) {
  LbfgsTraining training;
  training.train_until(2);
  const auto storage = std::make_shared<perdure::test::GatedStorage>();
  perdure::CheckpointManager checkpoints(
      storage, {.capture = perdure::Capture::overlapped, .warning = [](const std::string&) {}});
  storage->before_create.close();
  const perdure::SaveHandle handle = checkpoints.save(training.state);
  training.train_until(3);
  storage->before_create.open();
  EXPECT_ERROR(invalid, "optimizer: parameter 0", handle.wait());
}

// Resumes without one part of the state; whether the weights come out the same all the same.
bool comes_out_the_same_without(const std::string& left_out, const std::filesystem::path& file) {
  Training whole(1);
  whole.train_until(4);
  perdure::save(file, whole.state.state_dict());
  whole.train_until(9);

  Training resumed(2);
  const Value saved = perdure::load(file);
  Dict state;
  const Value fresh = Training(2).state.state_dict();
  for (const auto& [key, value] : saved.as_dict())
    state.set(key, key.as_string() == left_out ? fresh[key.as_string()] : value);
  resumed.state.load_state_dict(state);
  resumed.train_until(9);
  return same(perdure::state_dict(whole.model), perdure::state_dict(resumed.model));
}

TEST(Resume, NeedsEveryPartOfTheState) {
  const Directory directory;
  const auto file = directory.path() / "state.pt";
  EXPECT_TRUE(comes_out_the_same_without("", file));
  for (const char* part :
       {"model", "optimizer", "scheduler", "plateau", "rng", "shuffling", "epoch"})
    EXPECT_FALSE(comes_out_the_same_without(part, file)) << part;
}

TEST(Resume, TiedWeightsAreWrittenOnceAndStayTied) {
  const Directory directory;
  const auto file = directory.path() / "tied.pt";
  const torch::Tensor weight = torch::randn({1000, 10});
  perdure::save(file, Dict{{"in", weight}, {"out", weight}, {"row", weight[5]}});
  EXPECT_LT(std::filesystem::file_size(file), 60000U);
  const Value back = perdure::load(file);
  torch::Tensor in = perdure::to_tensor(back["in"]), out = perdure::to_tensor(back["out"]);
  EXPECT_TRUE(in.equal(weight));
  in.zero_();
  EXPECT_EQ(out.abs().sum().item<double>(), 0);
  EXPECT_EQ(perdure::to_tensor(back["row"]).abs().sum().item<double>(), 0);
}

TEST(Resume, LoadsToTheMetaDevice) {
  const Directory directory;
  const auto file = directory.path() / "meta.pt";
  nn::Linear model(3, 4);
  perdure::save(file, Dict{{"model", perdure::state_dict(model)}});
  const Value state = perdure::load(file, {.map_location = "meta"});
  const torch::Tensor weight = perdure::to_tensor(state["model"]["weight"]);
  EXPECT_TRUE(weight.is_meta());
  EXPECT_EQ(weight.sizes(), model->weight.sizes());
  EXPECT_THROW(perdure::load_state_dict(model, state["model"]), Error);
}

// --- What a TrainingState of LibTorch objects refuses ---

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid) << error.what();
    return error.what();
  }
  return "";
}

TEST(TorchTrainingState, RefusesAnotherOptimizerAndChangesNothing) {
  nn::Linear model(2, 2);
  optim::Adam adam(model->parameters());
  optim::AdamW adamw(model->parameters());
  perdure::TrainingState written, read;
  written.add("model", model);
  written.add("optimizer", adam);
  const Value state = written.state_dict();
  const auto recorded = written.optimizers();
  nn::Linear other(2, 2);
  const torch::Tensor before = other->weight.detach().clone();
  read.add("model", other);
  read.add("optimizer", adamw);
  const std::string text = error_of([&] { read.load_state_dict(state, recorded); });
  EXPECT_NE(text.find("state of Adam"), std::string::npos) << text;
  EXPECT_TRUE(other->weight.equal(before));
  EXPECT_FALSE(read.broken());
}

TEST(TorchTrainingState, PutsMomentumWhereItsParameterIs) {
  nn::Linear a(3, 3), b(3, 3);
  optim::SGD first({a->weight, a->bias}, optim::SGDOptions(0.1).momentum(0.9));
  optim::SGD second({b->bias, b->weight}, optim::SGDOptions(0.1).momentum(0.9));
  a->forward(torch::ones({1, 3})).square().sum().backward();
  first.step();
  perdure::TrainingState written, read;
  written.add("model", a);
  written.add("optimizer", first);
  read.add("model", b);
  read.add("optimizer", second);
  read.load_state_dict(written.state_dict(), written.optimizers());
  const auto momentum = [](optim::SGD& optimizer, std::int64_t number) {
    const Value state = perdure::state_dict(optimizer);
    return perdure::to_tensor(state["state"][number]["momentum_buffer"]);
  };
  EXPECT_TRUE(momentum(first, 0).equal(momentum(second, 1)));
  EXPECT_TRUE(momentum(first, 1).equal(momentum(second, 0)));
}

TEST(TorchTrainingState, TakesTensorsByThemselves) {
  torch::Tensor temperature = torch::full({1}, 2.0F).set_requires_grad(true);
  optim::SGD optimizer({temperature}, 0.1);
  perdure::TrainingState state;
  state.add("temperature", temperature);
  state.add("optimizer", optimizer);
  EXPECT_EQ(state.optimizers().at("optimizer").param_names[0][0], "temperature");
  perdure::TrainingState into;
  torch::Tensor other = torch::zeros({1}).set_requires_grad(true), wrong = torch::zeros({2});
  optim::SGD other_optimizer({other}, 0.1);
  into.add("temperature", other);
  into.add("optimizer", other_optimizer);
  into.load_state_dict(state.state_dict(), state.optimizers());
  EXPECT_EQ(other.item<float>(), 2);
  EXPECT_THROW(
      perdure::Adapter<at::Tensor>::load_state_dict(wrong, state.state_dict().at("temperature")),
      Error);
}

TEST(TorchTrainingState, HoldsTheDefaultGenerator) {
  nn::Linear model(1, 1);
  perdure::TrainingState state;
  state.add("model", model);
  state.add("optimizer", nullptr);
  torch::manual_seed(9);
  Value saved = state.state_dict();
  const torch::Tensor expected = torch::randn({4});
  EXPECT_EQ(saved["rng"]["torch"].as_tensor().numel(), 5056U);
  state.load_state_dict(saved);
  EXPECT_TRUE(torch::randn({4}).equal(expected));
}

}  // namespace
