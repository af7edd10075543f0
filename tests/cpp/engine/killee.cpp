// A training run that does nothing but save, for tests/python/test_kills.py to kill, and for
// test_preemption.py to preempt: at SIGTERM it saves a last time and ends.
//
//   killee RUN SEED CAPTURE     prints "restored STEP", then "saved STEP" for every save that was
//   acknowledged
//
// What it saves is a function of the step alone, so that the next one can tell whether what it got
// back is exactly that. It ends by itself only where it is preempted, and where something is wrong:
// with 1, and a line on standard error.
//
//   killee RUN SEED CAPTURE SAVES
//
// For test_syscalls.py, where saves may fail: prints "failed STEP" and why for those, and ends when
// SAVES of them were acknowledged. Says "ready" before it begins and "closed" before it ends, and
// waits for a line on standard input each time, so that it can be looked at.
#include <sys/prctl.h>
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

[[noreturn]] void fail(const std::string& what) {
  std::cerr << "killee: " << what << '\n';
  std::_Exit(1);  // a warning is a failure here: no kill may damage anything
}

// One system call a line: what was told is told, whatever happens next.
void tell(std::string line) {
  line += '\n';
  if (::write(STDOUT_FILENO, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    fail("nobody listens");
}

// Among what is told, and so a line of its own; threads warn.
void warn(const std::string& what) { tell("warning " + what); }

void tell_and_wait(const std::string& what) {
  tell(what);
  for (char byte = 0; ::read(STDIN_FILENO, &byte, 1) == 1 && byte != '\n';) continue;
}

class Run {
 public:
  Run(const std::string& directory, perdure::Capture capture, bool may_fail)
      : checkpoints_(directory, {.keep_last = 2,
                                 .keep_best = {{"loss", perdure::Mode::min, 1}},
                                 .save_every = {.steps = 1},
                                 .save_on_signal = {SIGTERM},
                                 .capture = capture,
                                 .warning = may_fail ? warn : fail}) {
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
    tell("restored " + std::to_string(state_.step));
  }

  // What the one before has left to do goes on meanwhile, as it does behind a training step.
  void save(std::mt19937& random) {
    checkpoints_.fence();
    ++version_;
    numbers_ = numbers_of(++state_.step);
    if (in_flight_) {
      in_flight_->wait();
      tell("saved " + std::to_string(state_.step - 1));
    }
    if (checkpoints_.should_save(state_.step))
      in_flight_ = checkpoints_.save(state_, {{"loss", static_cast<double>(random() % 100)}});
  }

  // Saves until that many are acknowledged.
  void save_in_spite_of_failures(std::mt19937& random, int saves) {
    for (int left = 3 * saves; saves > 0; --left) {
      if (left == 0) fail("too many saves failed");
      in_flight_.reset();
      save(random);
      try {
        in_flight_->wait();
        tell("saved " + std::to_string(state_.step));
        --saves;
      } catch (const perdure::Error& error) {
        tell("failed " + std::to_string(state_.step) + ' ' + error.what());
      }
    }
  }

  bool preempted() const { return checkpoints_.preempted(); }
  void close() { checkpoints_.close(); }

 private:
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

  perdure::CheckpointManager checkpoints_;
  perdure::TrainingState state_;
  std::vector<std::uint64_t> numbers_;
  std::uint64_t version_ = 0;
  bool restored_ = false;
  std::optional<perdure::SaveHandle> in_flight_;
};

perdure::Capture capture_named(const std::string& name) {
  if (name == "overlapped") return perdure::Capture::overlapped;
  return name == "checked" ? perdure::Capture::checked : perdure::Capture::eager;
}

// Until it is killed or preempted; nothing may fail.
void train(const std::string& directory, std::mt19937& random, perdure::Capture capture) {
  Run run(directory, capture, false);
  run.restore();
  do run.save(random);
  while (!run.preempted());
  run.close();
}

void train_in_spite_of_failures(const std::string& directory, std::mt19937& random,
                                perdure::Capture capture, int saves) {
  ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);  // whoever looks need not be the parent
  tell_and_wait("ready");
  {
    Run run(directory, capture, true);
    run.restore();
    run.save_in_spite_of_failures(random, saves);
    run.close();
  }
  tell_and_wait("closed");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) return 2;
  try {
    std::mt19937 random(static_cast<std::uint32_t>(std::stoul(argv[2])));
    if (argc == 4)
      train(argv[1], random, capture_named(argv[3]));
    else
      train_in_spite_of_failures(argv[1], random, capture_named(argv[3]), std::stoi(argv[4]));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "killee: " << error.what() << '\n';
    return 1;
  }
}
