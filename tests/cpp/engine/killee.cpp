// A training run that does nothing but save, for tests/python/test_kills.py to kill.
//
//   killee RUN SEED     prints "restored STEP", then "saved STEP" for every save that was
//   acknowledged
//
// What it saves is a function of the step alone, so that the next one can tell whether what it got
// back is exactly that. It ends by itself only where something is wrong: with 1, and a line on
// standard error.
#include <unistd.h>

#include <iostream>
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
  explicit Run(const std::string& directory)
      : checkpoints_(
            directory,
            {.keep_last = 2, .keep_best = {{"loss", perdure::Mode::min, 1}}, .warning = fail}) {
    state_.add("numbers", numbers_);
  }

  void restore() {
    checkpoints_.restore(state_);
    if (state_.step > 0) check();
    tell("restored");
  }

  void save(std::mt19937& random) {
    ++state_.step;
    std::vector<std::uint64_t> numbers = numbers_of(state_.step);
    const auto count = static_cast<std::int64_t>(numbers.size());
    numbers_ = perdure::Tensor::over(numbers.data(), perdure::DType::uint64, {count});
    checkpoints_.save(state_, {{"loss", static_cast<double>(random() % 100)}}).wait();
    tell("saved");
  }

 private:
  [[noreturn]] static void fail(const std::string& what) {
    std::cerr << "killee: " << what << '\n';
    std::_Exit(1);  // a warning is a failure here: no kill may damage anything
  }

  void check() {
    const perdure::Tensor& tensor = numbers_.as_tensor();
    const std::vector<std::uint64_t> expected = numbers_of(state_.step);
    const auto* found = reinterpret_cast<const std::uint64_t*>(tensor.storage->data);
    if (tensor.numel() != expected.size() || !std::equal(expected.begin(), expected.end(), found))
      fail("step " + std::to_string(state_.step) + " came back with other numbers");
  }

  // One system call a line: what was told is told, whatever happens next.
  void tell(const std::string& what) {
    const std::string line = what + ' ' + std::to_string(state_.step) + '\n';
    if (::write(STDOUT_FILENO, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
      fail("nobody listens");
  }

  perdure::CheckpointManager checkpoints_;
  perdure::TrainingState state_;
  Value numbers_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    std::mt19937 random(static_cast<std::uint32_t>(std::stoul(argv[2])));
    Run run(argv[1]);
    run.restore();
    while (true) run.save(random);
  } catch (const std::exception& error) {
    std::cerr << "killee: " << error.what() << '\n';
    return 1;
  }
}
