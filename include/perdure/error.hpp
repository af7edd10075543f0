// The one exception type of perdure, and the spans that all of its interfaces speak in.
//
// Every failure that a caller can meet is an Error: its text says what happened, where (path,
// offset, tensor) and what can be done; its code() says which kind it is. Absence is not an error:
// it is std::nullopt. Nothing in perdure aborts, prints, or throws from a destructor.
#pragma once

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

namespace perdure {

using ConstBytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

enum class ErrorCode {
  io,         // the operating system refused; errno_value() says why
  corrupt,    // the bytes are provably damaged: structure or checksum; restore falls back on this
              // alone
  not_found,  // a file, step or key that was asked for by name does not exist
  invalid,  // the caller's arguments or state do not fit (wrong type, shape, name, order of calls)
  unsupported,  // whole and well-formed, but not something that this version can take
  cancelled,    // given up because the owner was closed or asked to stop
  full,         // no space or quota left, or the file would pass a size limit
  locked,       // another live process or manager holds the run directory
};

// The name of a code, as it stands in the enumeration: "corrupt".
const char* error_code_name(ErrorCode code) noexcept;

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& what, int errno_value = 0)
      : std::runtime_error(what), code_(code), errno_value_(errno_value) {}

  ErrorCode code() const noexcept { return code_; }
  // The errno of the failed system call for io and full; 0 where there was none.
  int errno_value() const noexcept { return errno_value_; }

 private:
  ErrorCode code_;
  int errno_value_;
};

}  // namespace perdure
