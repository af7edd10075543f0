// Runs a piece of work once on a CrashingDisk, remembers the disk before every change of it, and
// looks at what may be found after a power cut at each of these moments.
//
// Every answer to every question of a crash is tried while there are few, and as many as
// PERDURE_STATES says, chosen by PERDURE_SEED, where there are many. The check opens what it finds
// and goes on with it, which changes the disk again: cuts in the middle of that are explored, too.
// A failing case prints a line, such as PERDURE_CRASH=more/17:0110/3:01, that alone is run with it
// in the environment.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "storage/crashing_disk.hpp"

namespace perdure::test {

// The answers to the questions of one crash: given before, and after those by `rest`. All are
// written down.
class Answers {
 public:
  using Rest = Crash::Answer;
  explicit Answers(
      std::string given = "", Rest rest = [](unsigned) { return 0U; })
      : digits_(std::move(given)), rest_(std::move(rest)) {}

  unsigned operator()(unsigned count) {
    if (counts_.size() == digits_.size()) digits_ += static_cast<char>('0' + rest_(count));
    counts_.push_back(count);
    return static_cast<unsigned>(digits_[counts_.size() - 1] - '0');
  }
  const std::string& digits() const { return digits_; }
  // How the next list begins, in the order of counting; false after the last.
  bool next(std::string& beginning) const {
    beginning = digits_;
    while (!beginning.empty()) {
      const std::size_t last = beginning.size() - 1;
      if (static_cast<unsigned>(++beginning[last] - '0') < counts_[last]) return true;
      beginning.pop_back();
    }
    return false;
  }

 private:
  std::string digits_;
  std::vector<unsigned> counts_;
  Rest rest_;
};

inline std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::stoull(text) : otherwise;
}

// `Promise` is what was acknowledged so far, in the words of the test; it is copied at every
// change.
template <class Promise>
class CrashExplorer {
 public:
  using Work = std::function<void(CrashingDisk&, Promise&)>;
  using Check = std::function<void(CrashingDisk&, const Promise&)>;

  // `states`: about how many are looked at, cuts in the check included. `depth` 2: those are.
  CrashExplorer(std::string name, Work work, Check check, std::uint64_t states, int depth)
      : name_(std::move(name)),
        work_(std::move(work)),
        check_(std::move(check)),
        states_(states),
        depth_(depth),
        seed_(number_from_environment("PERDURE_SEED", 1)) {}

  // Runs `prepare` with nothing remembered, then `work`; then explores. How many states were seen.
  std::uint64_t run(const Work& prepare) {
    CrashingDisk disk;
    Promise promise{};
    prepare(disk, promise);
    const auto moments = record(disk, promise, [&] { work_(disk, promise); });
    const char* only = std::getenv("PERDURE_CRASH");
    if (only == nullptr || *only == '\0') {
      explore(moments, depth_, states_, name_);
    } else if (std::string_view(only).starts_with(name_ + "/")) {
      replay(moments, std::string_view(only).substr(name_.size() + 1));
    }
    std::cout << name_ << ": " << seen_ << " states\n";
    return seen_;
  }

 private:
  struct Moment {
    Crash crash;
    Promise promise;
  };
  using Moments = std::vector<Moment>;

  // One for each change, as it was before that, and one for the end.
  template <class Doing>
  Moments record(CrashingDisk& disk, const Promise& promise, Doing&& doing) {
    Moments moments;
    std::mutex mutex;
    const auto remember = [&] {
      const std::lock_guard guard(mutex);
      moments.push_back({disk.crash(), promise});
    };
    disk.before_change = remember;
    doing();
    disk.before_change = nullptr;
    remember();
    return moments;
  }

  void explore(const Moments& moments, int depth, std::uint64_t states, const std::string& path) {
    const std::uint64_t each = std::max<std::uint64_t>(states / moments.size(), 1);
    for (std::size_t i = 0; i < moments.size() && !testing::Test::HasFailure(); ++i)
      explore(moments[i], depth, each, path + "/" + std::to_string(i) + ":");
  }

  void explore(const Moment& moment, int depth, std::uint64_t states, const std::string& path) {
    // With depth, most of the states are those of the second cut.
    const std::uint64_t here = depth > 1 ? std::max<std::uint64_t>(states / 16, 1) : states;
    auto answers = every_answer(moment, here);
    if (answers.empty()) answers = some_answers(moment, here, path);
    for (const std::string& digits : answers) {
      if (testing::Test::HasFailure()) return;
      look(moment, digits, depth, states / answers.size(), path);
    }
  }

  Moments look(const Moment& moment, const std::string& digits, int depth, std::uint64_t states,
               const std::string& path) {
    ++seen_;
    Answers answers(digits);
    const auto disk = moment.crash.restart(std::ref(answers));
    const std::string place = path + answers.digits();
    SCOPED_TRACE("to run this case alone: PERDURE_CRASH=" + place);
    Moments next;
    if (depth > 1)
      next = record(*disk, moment.promise, [&] { check_(*disk, moment.promise); });
    else
      check_(*disk, moment.promise);
    if (depth > 1 && states > 1 && !testing::Test::HasFailure())
      explore(next, depth - 1, states, place);
    return next;
  }

  // None where there are more than `limit`.
  static std::vector<std::string> every_answer(const Moment& moment, std::uint64_t limit) {
    std::vector<std::string> all;
    std::string beginning;
    for (bool more = true; more;) {
      Answers answers(beginning);
      moment.crash.restart(std::ref(answers));
      all.push_back(answers.digits());
      if (all.size() > limit) return {};
      more = answers.next(beginning);
    }
    return all;
  }

  // All is lost, all survives, and mixtures in which little, half or much does.
  std::vector<std::string> some_answers(const Moment& moment, std::uint64_t count,
                                        const std::string& path) const {
    std::seed_seq seeds(path.begin(), path.end());
    std::vector<std::uint32_t> mixed(1);
    seeds.generate(mixed.begin(), mixed.end());
    std::mt19937_64 random(seed_ * 1000003 + mixed[0]);
    std::vector<std::string> some;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t eighths = i % 3 == 0 ? 4 : i % 3 == 1 ? 1 : 7;
      Answers answers("", [&](unsigned options) -> unsigned {
        if (count > 4 && i < 2) return i == 0 ? 0 : 1;
        if (random() % 8 >= eighths) return 0;
        return 1 + static_cast<unsigned>(random() % (options - 1));
      });
      moment.crash.restart(std::ref(answers));
      some.push_back(answers.digits());
    }
    return some;
  }

  // "17:0110/3:01"
  void replay(const Moments& moments, std::string_view path) {
    std::string place = name_;
    const Moments* at = &moments;
    Moments next;
    while (!path.empty()) {
      const std::string_view part = path.substr(0, path.find('/'));
      path.remove_prefix(std::min(part.size() + 1, path.size()));
      const std::size_t colon = part.find(':');
      const std::string number(part.substr(0, colon));
      place += "/" + number + ":";
      ASSERT_LT(std::stoull(number), at->size()) << "no such moment: " << place;
      next = look(at->at(std::stoull(number)), std::string(part.substr(colon + 1)), 2, 1, place);
      at = &next;
      place += part.substr(colon + 1);
    }
  }

  std::string name_;
  Work work_;
  Check check_;
  std::uint64_t states_;
  int depth_;
  std::uint64_t seed_;
  std::uint64_t seen_ = 0;
};

}  // namespace perdure::test
