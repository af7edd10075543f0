// The everyday case: a loop over epochs with a schedule and a loader, that keeps its best loss and
// can be stopped and started at will, also in the middle of an epoch.
//
//   everyday runs/everyday
#include <torch/torch.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <limits>
#include <optional>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>

namespace nn = torch::nn;
namespace data = torch::data;

// Learn to add.
struct Sums : data::datasets::Dataset<Sums> {
  at::Tensor inputs = torch::randn({256, 8}), targets = inputs.sum(1, /*keepdim=*/true);
  data::Example<> get(std::size_t i) override {
    return {inputs[static_cast<std::int64_t>(i)], targets[static_cast<std::int64_t>(i)]};
  }
  std::optional<std::size_t> size() const override { return 256; }
};

int main(int argc, char** argv) {
  torch::manual_seed(1);
  const auto dataset = Sums().map(data::transforms::Stack<>());
  nn::Sequential model(nn::Linear(8, 32), nn::ReLU(), nn::Linear(32, 1));
  torch::optim::AdamW optimizer(model->parameters(), 1e-2);
  perdure::ReduceLROnPlateau scheduler(optimizer, {.factor = 0.5, .patience = 2});
  // for (auto& batch : loader): after a restore, what is left of the epoch, in the same order
  perdure::ResumableLoader loader(dataset, data::samplers::RandomSampler(256),
                                  data::DataLoaderOptions(32).workers(2));
  int epoch = 0;
  double loss = 0, best_loss = std::numeric_limits<double>::infinity();

  perdure::CheckpointManager checkpoints(
      argc > 1 ? argv[1] : "runs/everyday",
      {.keep_last = 3, .keep_best = {{"loss", perdure::Mode::min}}});
  perdure::TrainingState state;
  state.add("model", model);
  state.add("optimizer", optimizer);
  state.add("scheduler", scheduler);
  state.add("loader", loader);
  state.add("epoch", epoch);
  state.add("loss", loss);
  state.add("best_loss", best_loss);

  if (const auto restored = checkpoints.restore(state))
    std::cout << "restored: " << restored->path << "\n";
  while (epoch < 10) {
    for (auto& batch : loader) {
      const auto error = torch::mse_loss(model->forward(batch.data), batch.target);
      optimizer.zero_grad();
      error.backward();
      optimizer.step();
      ++state.step;
      loss = error.item<double>();
      if (state.step % 50 == 0) checkpoints.save(state);
    }
    scheduler.step(loss);
    ++epoch;
    best_loss = std::min(best_loss, loss);
    checkpoints.save(state, {{"loss", loss}});
    std::cout << "epoch " << epoch << ": loss " << loss << ", best " << best_loss << "\n";
  }
  checkpoints.close();
}
