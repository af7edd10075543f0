// The one-file calls: torch::save for people who want their training back, and who use Python too.
//
//   one_file cp.pt
#include <torch/torch.h>

#include <iostream>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "cp.pt";
  torch::nn::Linear model(4, 2);
  torch::optim::AdamW optimizer(model->parameters());
  model->forward(torch::ones({1, 4})).sum().backward();
  optimizer.step();

  perdure::save(path, perdure::Dict{{"epoch", 3},
                                    {"model", perdure::state_dict(model)},
                                    {"optimizer", perdure::state_dict(optimizer)},
                                    {"best_loss", 0.5}});

  perdure::Value state = perdure::load(path);
  perdure::load_state_dict(model, state["model"]);
  perdure::load_state_dict(optimizer, state["optimizer"]);
  std::cout << "epoch " << state["epoch"].as_int() << ", best loss "
            << state["best_loss"].as_double() << "\n";
}
