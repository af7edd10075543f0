#include "engine/saving.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <perdure/error.hpp>
#include <thread>

#include "engine/arena.hpp"

namespace perdure::engine {

void require_staging(std::uint64_t staging_bytes) {
  if (staging_bytes != 0 && staging_bytes < Arena::kMinBytes)
    throw Error(ErrorCode::invalid,
                fmt::format("staging_bytes is {}; at least {} are needed, or 0 for as many as the "
                            "state takes",
                            staging_bytes, Arena::kMinBytes));
}

// Copying is bound by the memory, not by the cores, and the writer needs one of them.
unsigned copy_threads() { return std::clamp(std::thread::hardware_concurrency() / 2, 1U, 4U); }

void print_warning(const std::string& text) {
  std::fprintf(stderr, "perdure: warning: %s\n", text.c_str());
}

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace perdure::engine
