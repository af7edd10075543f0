#include "io/errors.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <system_error>

namespace perdure::io {
namespace {

ErrorCode code_of(int error) {
  switch (error) {
    case ENOENT:
      return ErrorCode::not_found;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return ErrorCode::full;
    default:
      return ErrorCode::io;
  }
}

std::string text_of(int error) { return std::generic_category().message(error); }

}  // namespace

void throw_error(int error, std::string_view action, std::string_view path) {
  std::string text = fmt::format("cannot {} '{}': {}", action, path, text_of(error));
  if (error == ENOSPC)
    text += "; free some space (where `df` shows some, `df -i` may show that no inode is left)";
  throw Error(code_of(error), text, error);
}

void throw_write_error(System& system, int fd, int error, std::string_view action,
                       std::string_view path, std::uint64_t needed) {
  if (code_of(error) != ErrorCode::full) throw_error(error, action, path);
  std::string text = fmt::format("cannot {} '{}': {}: {} needed", action, path, text_of(error),
                                 format_bytes(needed));
  std::uint64_t left = 0;
  if (system.available(fd, left) == 0) text += fmt::format(", {} available", format_bytes(left));
  if (error == EDQUOT) text += "; the quota of this user or project is used up";
  throw Error(ErrorCode::full, text + "; free some space (nothing was replaced)", error);
}

std::string format_bytes(std::uint64_t bytes) {
  constexpr std::array units = {"bytes", "kB", "MB", "GB", "TB", "PB", "EB"};
  if (bytes < 1000) return fmt::format("{} bytes", bytes);
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 999.95 && unit + 1 < units.size(); ++unit) value /= 1000;
  return fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace perdure::io
