#include "command.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

#include "terminal.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

[[noreturn]] void output_failed() {
  const int error = errno;
  throw Error(ErrorCode::io,
              fmt::format("cannot write to standard output: {}", std::strerror(error)), error);
}

}  // namespace

Exit worse(Exit a, Exit b) noexcept {
  if (a == Exit::damaged || b == Exit::damaged) return Exit::damaged;
  return a == Exit::good ? b : a;
}

Exit exit_for(const Error& error) noexcept {
  return error.code() == ErrorCode::corrupt ? Exit::damaged : Exit::could_not_run;
}

Exit no_answer(const Error& error, bool json) {
  if (error.code() != ErrorCode::corrupt) throw error;
  complain(error.what());
  if (json) print(to_text({{"error", error_json(error)}}) + '\n');
  return Exit::could_not_run;
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed();
}

void flush_output() {
  if (std::fflush(stdout) != 0) output_failed();
}

void complain(std::string_view text) {
  const std::string_view who =
      shows_color(STDERR_FILENO) ? "\x1b[1;31mperdure:\x1b[0m" : "perdure:";
  std::fputs(fmt::format("{} {}\n", who, escape(text)).c_str(), stderr);
}

std::string to_text(const Json& json) {
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

Json number_json(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

// By way of a map: an ordered object compares each new key with all before it.
Json metrics_json(const Metrics& metrics) {
  std::map<std::string, Json> numbers;
  for (const auto& [name, value] : metrics) numbers.emplace(name, number_json(value));
  return numbers;
}

Json error_json(const Error& error) {
  return {{"code", error_code_name(error.code())}, {"message", error.what()}};
}

}  // namespace perdure::cli
