// What all tests ask of a failure: that it is an Error, of the right kind, and says what it should.
#pragma once

#include <gtest/gtest.h>

#include <perdure/error.hpp>
#include <string>

namespace perdure::test {

// The Error that `action` throws; a test failure where it throws none.
template <class Action>
Error error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no Error was thrown";
  return Error(ErrorCode::cancelled, "nothing was thrown");
}

#define EXPECT_ERROR(code_, part, statement)                                              \
  do {                                                                                    \
    const ::perdure::Error error_ = ::perdure::test::error_of([&] { statement; });        \
    EXPECT_EQ(error_.code(), ::perdure::ErrorCode::code_) << error_.what();               \
    EXPECT_NE(std::string(error_.what()).find(part), std::string::npos) << error_.what(); \
  } while (false)

}  // namespace perdure::test
