// Saves and loads with an installed perdure; the only argument is a file to write. Exits with 0
// where it came back.
#include <iostream>
#include <perdure/perdure.hpp>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::vector<float> weight = {1, 2, 3, 4, 5, 6};
  perdure::save(argv[1],
                perdure::Dict{{"epoch", 3},
                              {"weight", perdure::Tensor::over(weight.data(),
                                                               perdure::DType::float32, {2, 3})}});
  const perdure::Value state = perdure::load(argv[1]);
  const perdure::Tensor& loaded = state["weight"].as_tensor();
  const auto* numbers = reinterpret_cast<const float*>(loaded.storage->data);
  const bool same = state["epoch"].as_int() == 3 &&
                    std::vector<float>(numbers, numbers + loaded.numel()) == weight;
  std::cout << (same ? "came back\n" : "differs\n");
  return same ? 0 : 1;
}
