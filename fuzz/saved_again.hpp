// What was loaded can be saved, and what was saved loads as it was.
#pragma once

#include "format/memory_source.hpp"
#include "format/same_value.hpp"
#include "require.hpp"

namespace perdure::fuzz {

// `state` has all its bytes. A few things can be loaded and not be saved (ints of more than 255
// bytes, devices of unknown form): these must be refused as invalid, before anything is written.
inline void check_saved_again(const Value& state) {
  std::string file;
  try {
    file = test::file_of(state);
  } catch (const Error& error) {
    return require(error.code() == ErrorCode::invalid,
                   std::string("not saved again: ") + error.what());
  }
  const std::string difference = test::Comparison::difference(state, test::load_bytes(file));
  require(difference.empty(), "another value after save and load: " + difference);
  require(verify(test::source_of(file)).state == VerifyReport::State::good,
          "verify finds fault with what save wrote");
}

}  // namespace perdure::fuzz
