// A training that can be stopped at any moment, in any way, and goes on exactly: everything that a
// real loop has.
//
//   train runs/waves [--epochs N] [--save-every STEPS]    stop it, kill it, preempt it; then the
//   same again
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <optional>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>
#include <string>

namespace data = torch::data;
namespace nn = torch::nn;
namespace optim = torch::optim;

// Sines of four frequencies, each with a phase and noise that its index seeds.
struct Waves : data::datasets::Dataset<Waves> {
  data::Example<> get(std::size_t index) override {
    auto random = at::make_generator<at::CPUGeneratorImpl>(index);
    const auto label = static_cast<std::int64_t>(index % 4);
    const auto phase = 6.28 * torch::rand({1}, random);
    const auto wave = torch::sin(torch::linspace(0, 6.28, 64) * (1 + label) + phase);
    return {wave + 2 * torch::randn({64}, random), torch::tensor(label)};
  }
  std::optional<std::size_t> size() const override { return 2048; }
};

int main(int argc, char** argv) {
  const std::string run = argc > 1 ? argv[1] : "runs/waves";
  int epochs = 5, save_every = 0;
  for (int i = 2; i + 1 < argc; i += 2)
    (std::strcmp(argv[i], "--epochs") == 0 ? epochs : save_every) = std::atoi(argv[i + 1]);

  torch::manual_seed(1);
  nn::Sequential body(nn::Linear(64, 128), nn::ReLU(), nn::Dropout(0.2), nn::Linear(128, 64),
                      nn::ReLU());
  nn::Linear head(64, 4);
  optim::AdamW adamw(body->parameters(), 3e-3);
  optim::SGD sgd(head->parameters(), optim::SGDOptions(0.05).momentum(0.9).nesterov(true));
  perdure::StepLR steps(sgd, /*step_size=*/100, /*gamma=*/0.5);
  perdure::ReduceLROnPlateau plateau(adamw, {.patience = 1});
  perdure::ResumableLoader batches(Waves().map(data::transforms::Stack<>()),
                                   data::samplers::RandomSampler(2048),
                                   data::DataLoaderOptions(32).workers(2));
  int epoch = 0;
  double best_loss = std::numeric_limits<double>::infinity(), sum = 0;

  perdure::TrainingState state;
  state.add("body", body), state.add("head", head);
  state.add("adamw", adamw), state.add("sgd", sgd);
  state.add("steps", steps), state.add("plateau", plateau);
  state.add("batches", batches);
  state.add("epoch", epoch), state.add("best_loss", best_loss), state.add("sum", sum);
  perdure::CheckpointManager checkpoints(run, {.keep_last = 2,
                                               .keep_best = {{"loss", perdure::Mode::min}},
                                               .keep_every = {.time = std::chrono::hours(6)},
                                               .save_every = {.steps = save_every},
                                               .overhead = 0.02,
                                               .save_on_signal = {SIGTERM, SIGUSR1}});
  if (const auto restored = checkpoints.restore(state))
    std::cout << "restored: " << restored->path << std::endl;
  while (epoch < epochs && !checkpoints.preempted()) {
    for (auto& batch : batches) {
      at::autocast::set_autocast_enabled(at::kCPU, true);  // bfloat16
      const auto loss = torch::cross_entropy_loss(head(body->forward(batch.data)), batch.target);
      at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(at::kCPU, false);
      body->zero_grad(), head->zero_grad();
      loss.backward();
      adamw.step(), sgd.step(), steps.step();
      sum += loss.item<double>();
      ++state.step;
      if (checkpoints.should_save(state.step)) checkpoints.save(state);
      if (checkpoints.preempted()) break;
    }
    if (checkpoints.preempted()) break;
    const double mean = sum / 64;
    plateau.step(mean);
    ++epoch, sum = 0, best_loss = std::min(best_loss, mean);
    checkpoints.save(state, {{"loss", mean}});
    std::cout << "epoch " << epoch << ": loss " << mean << ", best " << best_loss << std::endl;
  }
  checkpoints.close();
  return checkpoints.preempted() ? 75 : 0;  // not done: whoever has started it should do so again
}
