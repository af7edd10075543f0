// The C++ side of tests/python/test_crossing.py: trains a small model whose weights, inputs and
// noise are given by formula, from and to checkpoints, so that Python can do the same and compare.
//
//   crossing train SPEC IN|- OUT STEPS
//
// trains with an optimizer such as "AdamW,lr=0.01,amsgrad=1", from the beginning where IN is "-".
//
//   crossing schedule SPEC IN|- OUT METRICS
//
// steps a scheduler such as "StepLR,step_size=3" or "ReduceLROnPlateau,max=1" with each number of
// the list in the file METRICS.
//
//   crossing ranks RUN RANK SIZE STORE STEPS
//
// trains as one of several ranks that meet at the file STORE, which all have the same model, up to
// that many steps, with a checkpoint after each in the directory RUN. Says what it has at the end.
//
//   crossing echo IN OUT
//   crossing tensors IN OUT
//
// load any file and save it again, the latter with every tensor made an at::Tensor
// in between. Without a command, commands come as lines of standard input, their words parted by
// tabs; each is answered by what went wrong, if anything did, and a line "done".
#include <torch/torch.h>

#include <cstdint>
#include <iostream>
#include <map>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>
#include <perdure/torch/ranks.hpp>
#include <sstream>
#include <string>
#include <torch/csrc/distributed/c10d/FileStore.hpp>

namespace {

using perdure::Dict;
using perdure::Kind;
using perdure::Value;
namespace nn = torch::nn;
namespace optim = torch::optim;

struct NetImpl : nn::Module {
  nn::Linear fc1{nullptr}, fc2{nullptr};
  nn::BatchNorm1d norm{nullptr};
  NetImpl() {
    fc1 = register_module("fc1", nn::Linear(nn::LinearOptions(4, 6).bias(false)));
    norm = register_module("norm", nn::BatchNorm1d(6));
    fc2 = register_module("fc2", nn::Linear(6, 2));
    const torch::NoGradGuard no_grad;
    std::int64_t k = 0;
    for (torch::Tensor& p : parameters())
      p.copy_(numbers(p.numel(), 37, 11 * k++, 97).sub(48).div(97).reshape(p.sizes()));
  }
  // (i * a + b) % n for i in 0..count-1: the same in every language.
  static torch::Tensor numbers(std::int64_t count, std::int64_t a, std::int64_t b, std::int64_t n) {
    return torch::arange(count, torch::kLong).mul(a).add(b).remainder(n).to(torch::kDouble);
  }
  torch::Tensor forward(const torch::Tensor& x) { return fc2(torch::tanh(norm(fc1(x)))); }
};
TORCH_MODULE(Net);

void train_step(Net& net, optim::Optimizer& optimizer, optim::StepLR& scheduler,
                std::int64_t step) {
  auto x =
      NetImpl::numbers(32, 29, 13 * step, 101).sub(50).div(50).to(torch::kFloat).reshape({8, 4});
  const auto y = NetImpl::numbers(16, 17, 7 * step, 53).div(53).to(torch::kFloat).reshape({8, 2});
  x = x + 0.1 * torch::randn({8, 4});  // so that the random numbers have to come back as well
  optimizer.step([&] {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(net(x), y);
    loss.backward();
    return loss;
  });
  scheduler.step();
}

std::vector<std::string> split(const std::string& line, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(line);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

struct Spec {
  std::string name;
  std::map<std::string, double> options;
  explicit Spec(const std::string& text) {
    for (const std::string& item : split(text, ',')) {
      const std::size_t equals = item.find('=');
      if (equals == std::string::npos)
        name = item;
      else
        options[item.substr(0, equals)] = std::stod(item.substr(equals + 1));
    }
  }
  double get(const char* key, double otherwise) const {
    const auto found = options.find(key);
    return found == options.end() ? otherwise : found->second;
  }
};

template <class O, class Options>
std::unique_ptr<optim::Optimizer> make_adam(const Spec& spec, Net& net, double weight_decay) {
  return std::make_unique<O>(net->parameters(),
                             Options(spec.get("lr", 1e-3))
                                 .betas({spec.get("beta1", 0.9), spec.get("beta2", 0.999)})
                                 .eps(spec.get("eps", 1e-8))
                                 .weight_decay(spec.get("weight_decay", weight_decay))
                                 .amsgrad(spec.get("amsgrad", 0) != 0));
}

std::unique_ptr<optim::Optimizer> make_optimizer(const Spec& spec, Net& net) {
  const auto params = net->parameters();
  const double decay = spec.get("weight_decay", 0);
  if (spec.name == "Adam") return make_adam<optim::Adam, optim::AdamOptions>(spec, net, 0);
  if (spec.name == "AdamW") return make_adam<optim::AdamW, optim::AdamWOptions>(spec, net, 1e-2);
  if (spec.name == "SGD")
    return std::make_unique<optim::SGD>(params, optim::SGDOptions(spec.get("lr", 1e-3))
                                                    .momentum(spec.get("momentum", 0))
                                                    .dampening(spec.get("dampening", 0))
                                                    .weight_decay(decay)
                                                    .nesterov(spec.get("nesterov", 0) != 0));
  if (spec.name == "RMSprop")
    return std::make_unique<optim::RMSprop>(params, optim::RMSpropOptions(spec.get("lr", 1e-2))
                                                        .alpha(spec.get("alpha", 0.99))
                                                        .eps(spec.get("eps", 1e-8))
                                                        .weight_decay(decay)
                                                        .momentum(spec.get("momentum", 0))
                                                        .centered(spec.get("centered", 0) != 0));
  if (spec.name == "Adagrad")
    return std::make_unique<optim::Adagrad>(
        params, optim::AdagradOptions(spec.get("lr", 1e-2))
                    .lr_decay(spec.get("lr_decay", 0))
                    .weight_decay(decay)
                    .initial_accumulator_value(spec.get("initial_accumulator_value", 0))
                    .eps(spec.get("eps", 1e-10)));
  if (spec.name == "LBFGS") {
    auto options = optim::LBFGSOptions(spec.get("lr", 1))
                       .max_iter(static_cast<std::int64_t>(spec.get("max_iter", 20)))
                       .history_size(static_cast<std::int64_t>(spec.get("history_size", 100)));
    if (spec.get("strong_wolfe", 0) != 0) options.line_search_fn("strong_wolfe");
    return std::make_unique<optim::LBFGS>(params, options);
  }
  throw std::invalid_argument("unknown optimizer " + spec.name);
}

void train(const Spec& spec, const std::string& in, const std::string& out, int steps) {
  torch::manual_seed(0);
  Net net;
  const auto optimizer = make_optimizer(spec, net);
  optim::StepLR scheduler(*optimizer, 3, 0.5);
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  torch::manual_seed(0);
  std::int64_t step = 0;
  if (in != "-") {
    const Value state = perdure::load(in);
    perdure::load_state_dict(net, state["model"]);
    perdure::load_state_dict(*optimizer, state["optimizer"]);
    perdure::load_state_dict(scheduler, state["scheduler"]);
    perdure::load_state_dict(generator, state["rng"]);
    step = state["step"].as_int();
  }
  for (int i = 0; i < steps; ++i) train_step(net, *optimizer, scheduler, step++);
  perdure::save(out, Dict{{"model", perdure::state_dict(net)},
                          {"optimizer", perdure::state_dict(*optimizer)},
                          {"scheduler", perdure::state_dict(scheduler)},
                          {"rng", perdure::state_dict(generator)},
                          {"step", step}});
}

template <class Scheduler, class Step>
void step_through(Scheduler& scheduler, optim::Optimizer& optimizer, const std::string& in,
                  const std::string& out, const Value& metrics, const Step& step) {
  if (in != "-") {
    const Value state = perdure::load(in);
    perdure::load_state_dict(scheduler, state["scheduler"]);
    perdure::load_state_dict(optimizer, state["optimizer"]);
  }
  Value::Items rates;
  for (const Value& metric : metrics.as_items()) {
    step(metric.as_double());
    for (const double rate : scheduler.get_last_lr()) rates.emplace_back(rate);
  }
  perdure::save(out, Dict{{"scheduler", perdure::state_dict(scheduler)},
                          {"optimizer", perdure::state_dict(optimizer)},
                          {"rates", Value::list(rates)}});
}

// On two groups with the learning rates 0.1 and 0.03.
void schedule(const Spec& spec, const std::string& in, const std::string& out,
              const std::string& metrics) {
  const auto group = [](double lr) {
    return optim::OptimizerParamGroup({torch::ones({1}).set_requires_grad(true)},
                                      std::make_unique<optim::SGDOptions>(lr));
  };
  optim::SGD optimizer({group(0.1), group(0.03)}, optim::SGDOptions(0.1));
  const auto whole = [&](const char* key, std::int64_t otherwise) {
    return static_cast<std::int64_t>(spec.get(key, static_cast<double>(otherwise)));
  };
  if (spec.name == "StepLR") {
    perdure::StepLR scheduler(optimizer, whole("step_size", 1), spec.get("gamma", 0.1));
    return step_through(scheduler, optimizer, in, out, perdure::load(metrics),
                        [&](double) { scheduler.step(); });
  }
  perdure::PlateauOptions options{
      .mode = spec.get("max", 0) != 0 ? perdure::Mode::max : perdure::Mode::min,
      .factor = spec.get("factor", 0.1),
      .patience = whole("patience", 10),
      .threshold = spec.get("threshold", 1e-4),
      .threshold_mode =
          spec.get("abs", 0) != 0 ? perdure::ThresholdMode::abs : perdure::ThresholdMode::rel,
      .cooldown = whole("cooldown", 0),
      .min_lr = {spec.get("min_lr", 0)},
      .eps = spec.get("eps", 1e-8)};
  for (const char* key : {"min_lr2", "min_lr3"})
    if (spec.options.contains(key)) options.min_lr.push_back(spec.get(key, 0));
  perdure::ReduceLROnPlateau scheduler(optimizer, options);
  step_through(scheduler, optimizer, in, out, perdure::load(metrics),
               [&](double metric) { scheduler.step(metric); });
}

// The same tree with every tensor converted and converted back.
Value through_torch(const Value& value) {
  if (value.kind() == Kind::tensor) return Value(perdure::to_tensor(value));
  if (value.is_mapping()) {
    Dict dict(value.kind());
    for (const auto& [key, entry] : value.as_dict()) dict.set(key, through_torch(entry));
    dict.set_attributes(value.as_dict().attributes());
    return dict;
  }
  if (value.kind() != Kind::list && value.kind() != Kind::tuple) return value;
  Value::Items items;
  for (const Value& item : value.as_items()) items.push_back(through_torch(item));
  return value.kind() == Kind::list ? Value::list(std::move(items))
                                    : Value::tuple(std::move(items));
}

// What a rank draws is its own, and the model what it was without it.
void train_ranks(const std::string& run, std::size_t rank, std::size_t size,
                 const std::string& meeting, std::int64_t steps) {
  const auto store = c10::make_intrusive<c10d::FileStore>(meeting, static_cast<int>(size));
  torch::manual_seed(rank);
  Net net;
  optim::SGD optimizer(net->parameters(), optim::SGDOptions(0.1).momentum(0.9));
  double drawn = 0;
  perdure::TrainingState state;
  state.add("model", net);
  state.add("optimizer", optimizer);
  state.add("drawn", drawn);
  perdure::CheckpointManager checkpoints(run, {.capture = perdure::Capture::overlapped,
                                               .ranks = perdure::ranks(store, rank, size),
                                               .rank_timeout = std::chrono::seconds(60)});
  checkpoints.restore(state);
  while (state.step < steps) {
    const auto x = NetImpl::numbers(32, 29, 13 * state.step, 101).to(torch::kFloat).div(50);
    torch::mse_loss(net(x.reshape({8, 4})), torch::ones({8, 2})).backward();
    checkpoints.fence();
    optimizer.step();
    optimizer.zero_grad();
    drawn += torch::rand({}).item<double>();
    ++state.step;
    checkpoints.save(state);
  }
  checkpoints.close();
  double sum = 0;
  for (const torch::Tensor& p : net->parameters()) sum += p.sum().item<double>();
  std::cout << std::hexfloat << state.step << " " << drawn << " " << sum << std::endl;
}

void run(const std::vector<std::string>& arguments) {
  const std::string command = arguments.empty() ? "" : arguments[0];
  if (command == "train" && arguments.size() == 5)
    train(Spec(arguments[1]), arguments[2], arguments[3], std::stoi(arguments[4]));
  else if (command == "schedule" && arguments.size() == 5)
    schedule(Spec(arguments[1]), arguments[2], arguments[3], arguments[4]);
  else if (command == "ranks" && arguments.size() == 6)
    train_ranks(arguments[1], std::stoul(arguments[2]), std::stoul(arguments[3]), arguments[4],
                std::stoi(arguments[5]));
  else if (command == "echo" && arguments.size() == 3)
    perdure::save(arguments[2], perdure::load(arguments[1]));
  else if (command == "tensors" && arguments.size() == 3)
    perdure::save(arguments[2], through_torch(perdure::load(arguments[1])));
  else
    throw std::invalid_argument("unknown command '" + command + "'");
}

}  // namespace

int main(int argc, char** argv) {
  torch::set_num_threads(1);
  if (argc > 1) {
    run({argv + 1, argv + argc});  // one command, of the command line
    return 0;
  }
  for (std::string line; std::getline(std::cin, line);) {
    try {
      run(split(line, '\t'));
    } catch (const std::exception& error) {
      std::cout << error.what() << "\n";
    }
    std::cout << "done" << std::endl;
  }
}
