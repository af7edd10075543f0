// The same with LibTorch: a module saved, another one loaded from it. Exits with 0 where the
// weights are equal.
#include <torch/torch.h>

#include <iostream>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  torch::nn::Linear written(3, 4);
  torch::nn::Linear loaded(3, 4);
  perdure::save(argv[1], perdure::Dict{{"model", perdure::state_dict(written)}});
  perdure::load_state_dict(loaded, perdure::load(argv[1])["model"]);
  const bool same =
      torch::equal(written->weight, loaded->weight) && torch::equal(written->bias, loaded->bias);
  std::cout << (same ? "came back\n" : "differs\n");
  return same ? 0 : 1;
}
