// Trains a small GPT on text files; kill it at any moment and start it again: it goes on exactly
// where it was.
//
//   train_gpt --run runs/gpt --text README.md --steps 300 --save-every 5 [--sample 200]
#include <torch/torch.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>

#include "gpt.hpp"

constexpr std::int64_t kBatch = 16;

struct Arguments {
  std::string run;
  std::vector<std::string> text;
  std::int64_t steps = 300, save_every = 5, sample = 0;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  std::string option;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.starts_with("--"))
      option = word;
    else if (option == "--run")
      a.run = word;
    else if (option == "--text")
      a.text.push_back(word);
    else if (option == "--steps")
      a.steps = std::stoll(word);
    else if (option == "--save-every")
      a.save_every = std::stoll(word);
    else if (option == "--sample")
      a.sample = std::stoll(word);
    else
      throw std::invalid_argument("unknown option '" + option + "'");
  }
  if (a.run.empty() || a.text.empty() || a.save_every < 1)
    throw std::invalid_argument(
        "usage: train_gpt --run DIR --text FILE... [--steps N] [--save-every K] [--sample N]");
  return a;
}

torch::Tensor read_text(const std::vector<std::string>& paths) {
  std::vector<std::int64_t> text;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::invalid_argument("cannot read " + path);
    if (&path != &paths.front()) text.push_back('\n');
    for (std::istreambuf_iterator<char> c(file), end; c != end; ++c)
      if (const auto byte = static_cast<unsigned char>(*c); byte < gpt::kVocabulary)
        text.push_back(byte);
  }
  return torch::tensor(text, torch::kLong);
}

double train_step(gpt::Gpt& model, torch::optim::Optimizer& optimizer, const torch::Tensor& text) {
  const auto starts = torch::randint(text.size(0) - model->context - 1, {kBatch}, torch::kLong);
  const auto windows = text.index({starts.unsqueeze(1) + torch::arange(model->context + 1)});
  const auto logits = model(windows.slice(1, 0, -1)).view({-1, gpt::kVocabulary});
  const auto loss = torch::nn::functional::cross_entropy(logits, windows.slice(1, 1).reshape(-1));
  optimizer.zero_grad();
  loss.backward();
  optimizer.step();
  return loss.item<double>();
}

void train(const Arguments& arguments) {
  torch::set_num_threads(1);
  torch::manual_seed(1);
  const auto text = read_text(arguments.text);
  const Config hyperparameters;
  gpt::Gpt model(hyperparameters);
  torch::optim::AdamW optimizer(model->parameters(), 3e-3);
  torch::optim::StepLR scheduler(optimizer, /*step_size=*/100, /*gamma=*/0.5);
  perdure::Dict config = hyperparameters.to_dict();
  config.set("batch", kBatch);
  perdure::Value losses = perdure::Value::list({});

  perdure::CheckpointManager checkpoints(arguments.run, {.keep_last = 3});
  perdure::TrainingState
      state;  // holds `step` and the state of the random number generator by itself
  state.add("model", model);
  state.add("optimizer", optimizer);
  state.add("scheduler", scheduler);
  state.add("losses", losses);
  state.add("config", config);

  const auto restored = checkpoints.restore(state);
  std::cout << "starting at step " << state.step << std::endl;
  if (restored) std::cout << "resumed from " << restored->path.string() << std::endl;
  while (state.step < arguments.steps) {
    const double loss = train_step(model, optimizer, text);
    scheduler.step();
    losses.as_items().emplace_back(loss);
    ++state.step;
    if (state.step % arguments.save_every == 0 || state.step == arguments.steps) {
      checkpoints.save(state, {{"loss", loss}});
      std::cout << "step " << state.step << ": loss " << loss << ", saved" << std::endl;
    }
  }
  checkpoints.close();
  if (arguments.sample > 0) std::cout << model->sample("\n", arguments.sample) << "\n";
}

int main(int argc, char** argv) {
  try {
    train(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "train_gpt: " << error.what() << "\n";
    return 1;
  }
}
