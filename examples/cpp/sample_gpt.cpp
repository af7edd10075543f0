// Prints text from a model that train_gpt has trained, in either language.
//
//   sample_gpt --from runs/gpt --text-length 200
#include <torch/torch.h>

#include <cstdint>
#include <iostream>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>

#include "gpt.hpp"

// A checkpoint file itself, or the newest one of a run directory.
std::filesystem::path find_checkpoint(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return path;
  for (const auto& listed : perdure::list_checkpoints(path))
    if (listed.problem.empty()) return listed.checkpoint.path;
  throw std::invalid_argument(path.string() + ": no checkpoint there; run train_gpt first");
}

void sample(const std::filesystem::path& from, std::int64_t length) {
  torch::set_num_threads(1);
  const perdure::Value state = perdure::load(
      find_checkpoint(from), {.map_location = "cpu", .keys = {{"model"}, {"config"}}});
  gpt::Gpt model(Config::from_value(state["config"]));
  perdure::load_state_dict(model, state["model"]);
  std::cout << model->sample("\n", length) << "\n";
}

int main(int argc, char** argv) {
  try {
    std::string from;
    std::int64_t length = 200;
    for (int i = 1; i + 1 < argc; i += 2) {
      if (std::string_view(argv[i]) == "--from") from = argv[i + 1];
      if (std::string_view(argv[i]) == "--text-length") length = std::stoll(argv[i + 1]);
    }
    if (from.empty())
      throw std::invalid_argument("usage: sample_gpt --from FILE_OR_RUN [--text-length N]");
    torch::manual_seed(1);
    sample(from, length);
  } catch (const std::exception& error) {
    std::cerr << "sample_gpt: " << error.what() << "\n";
    return 1;
  }
}
