// A training run that does nothing but save, for tests/python/test_kills.py to kill, and for
// test_preemption.py to preempt: at SIGTERM it saves a last time and ends.
//
//   killee RUN SEED CAPTURE     prints "restored STEP", then "saved STEP" for every save that was
//   acknowledged
//
// What it saves is a function of the step alone, so that the next one can tell whether what it got
// back is exactly that. It ends by itself only where it is preempted, and where something is wrong:
// with 1, and a line on standard error.
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <iostream>
#include <optional>
#include <perdure/perdure.hpp>
#include <random>

namespace {

using perdure::Dict;
using perdure::Value;

// From a few bytes to a few MiB, so that kills hit every phase of a save.
std::vector<std::uint64_t> numbers_of(std::int64_t step) {
  std::mt19937_64 random(static_cast<std::uint64_t>(step));
  std::vector<std::uint64_t> numbers(std::size_t{1} << (random() % 19));
  for (std::uint64_t& number : numbers) number = random();
  return numbers;
}

class Run {
 public:
  Run(const std::string& directory, perdure::Capture capture)
      : checkpoints_(directory, {.keep_last = 2,
                                 .keep_best = {{"loss", perdure::Mode::min, 1}},
                                 .save_every = {.steps = 1},
                                 .save_on_signal = {SIGTERM},
                                 .capture = capture,
                                 .warning = fail}) {
    state_.add_entry({.name = "numbers",
                      .role = perdure::Role::other,
                      .state_dict = [this] { return live_numbers(); },
                      .load_state_dict = [this](const Value& value) { take(value.as_tensor()); },
                      .check = {},
                      .parameters = {},
                      .describe = {},
                      .align = {},
                      .versions = [this] { return std::vector<std::uint64_t>{version_}; }});
  }

  void restore() {
    state_.step = 0;
    checkpoints_.restore(state_);
    if (restored_ && numbers_ != numbers_of(state_.step))
      fail("step " + std::to_string(state_.step) + " came back with other numbers");
    tell("restored", state_.step);
  }

  // What the one before has left to do goes on meanwhile, as it does behind a training step.
  void save(std::mt19937& random) {
    checkpoints_.fence();
    ++version_;
    numbers_ = numbers_of(++state_.step);
    if (in_flight_) {
      in_flight_->wait();
      tell("saved", state_.step - 1);
    }
    if (checkpoints_.should_save(state_.step))
      in_flight_ = checkpoints_.save(state_, {{"loss", static_cast<double>(random() % 100)}});
  }

  bool preempted() const { return checkpoints_.preempted(); }
  void close() { checkpoints_.close(); }

 private:
  [[noreturn]] static void fail(const std::string& what) {
    std::cerr << "killee: " << what << '\n';
    std::_Exit(1);  // a warning is a failure here: no kill may damage anything
  }

  Value live_numbers() {
    perdure::Tensor tensor = perdure::Tensor::over(numbers_.data(), perdure::DType::uint64,
                                                   {static_cast<std::int64_t>(numbers_.size())});
    tensor.liveness = perdure::Liveness::stepped;
    return Value(std::move(tensor));
  }

  void take(const perdure::Tensor& tensor) {
    const auto* found = reinterpret_cast<const std::uint64_t*>(tensor.storage->data);
    numbers_.assign(found, found + tensor.numel());
    restored_ = true;
  }

  // One system call a line: what was told is told, whatever happens next.
  static void tell(const std::string& what, std::int64_t step) {
    const std::string line = what + ' ' + std::to_string(step) + '\n';
    if (::write(STDOUT_FILENO, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
      fail("nobody listens");
  }

  perdure::CheckpointManager checkpoints_;
  perdure::TrainingState state_;
  std::vector<std::uint64_t> numbers_;
  std::uint64_t version_ = 0;
  bool restored_ = false;
  std::optional<perdure::SaveHandle> in_flight_;
};

}  // namespace

namespace {

perdure::Capture capture_named(const std::string& name) {
  if (name == "overlapped") return perdure::Capture::overlapped;
  return name == "checked" ? perdure::Capture::checked : perdure::Capture::eager;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    std::mt19937 random(static_cast<std::uint32_t>(std::stoul(argv[2])));
    Run run(argv[1], capture_named(argv[3]));
    run.restore();
    do run.save(random);
    while (!run.preempted());
    run.close();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "killee: " << error.what() << '\n';
    return 1;
  }
}
