// Ranks that are threads of this process.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <perdure/error.hpp>
#include <perdure/ranks.hpp>
#include <thread>
#include <vector>

#include "expect_error.hpp"

namespace perdure::test {

using RankWork = std::function<void(std::shared_ptr<Ranks>)>;

// What each has thrown, or null.
inline std::vector<std::exception_ptr> errors_of_ranks(std::size_t count, const RankWork& work) {
  const auto ranks = LocalRanks::make(count);
  std::vector<std::exception_ptr> errors(count);
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < count; ++i)
      threads.emplace_back([&, i] {
        try {
          work(ranks[i]);
        } catch (...) {
          errors[i] = std::current_exception();
        }
      });
  }
  return errors;
}

inline std::string text_of(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

inline void on_ranks(std::size_t count, const RankWork& work) {
  for (const auto& error : errors_of_ranks(count, work)) EXPECT_EQ(text_of(error), "");
}

}  // namespace perdure::test
