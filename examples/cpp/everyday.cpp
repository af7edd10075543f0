// The everyday case: a loop over epochs that keeps its best loss, and can be stopped and started at
// will.
//
//   everyday runs/everyday
#include <torch/torch.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>

namespace nn = torch::nn;

int main(int argc, char** argv) {
  torch::manual_seed(1);
  const auto inputs = torch::randn({256, 8}), targets = inputs.sum(1, /*keepdim=*/true);
  nn::Sequential model(nn::Linear(8, 32), nn::ReLU(), nn::Linear(32, 1));
  torch::optim::AdamW optimizer(model->parameters(), 1e-2);
  int epoch = 0;
  double best_loss = std::numeric_limits<double>::infinity();

  perdure::CheckpointManager checkpoints(
      argc > 1 ? argv[1] : "runs/everyday",
      {.keep_last = 3, .keep_best = {{"loss", perdure::Mode::min}}});
  perdure::TrainingState state;
  state.add("model", model);
  state.add("optimizer", optimizer);
  state.add("epoch", epoch);
  state.add("best_loss", best_loss);

  if (const auto restored = checkpoints.restore(state))
    std::cout << "restored: " << restored->path << "\n";
  while (epoch < 10) {
    double loss = 0;
    for (const auto& batch : torch::randperm(256).split(32)) {
      const auto error =
          torch::mse_loss(model->forward(inputs.index({batch})), targets.index({batch}));
      optimizer.zero_grad();
      error.backward();
      optimizer.step();
      ++state.step;
      loss = error.item<double>();
    }
    ++epoch;
    best_loss = std::min(best_loss, loss);
    checkpoints.save(state, {{"loss", loss}});
    std::cout << "epoch " << epoch << ": loss " << loss << ", best " << best_loss << "\n";
  }
  checkpoints.close();
}
