#include "engine/checkpoint_name.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>

namespace perdure::engine {
namespace {

constexpr std::string_view kFile = ".pt";
constexpr std::string_view kDirectory = ".dcp";
constexpr std::string_view kDamaged = ".damaged";

// Takes `prefix` and the number behind it off the front of `text`.
template <class Number>
bool take(std::string_view& text, std::string_view prefix, Number& number) {
  if (!text.starts_with(prefix)) return false;
  const char* begin = text.data() + prefix.size();
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(begin, end, number);
  if (error != std::errc() || *begin == '-') return false;
  text = {rest, static_cast<std::size_t>(end - rest)};
  return true;
}

}  // namespace

std::string format(const CheckpointName& name) {
  return fmt::format("step-{:010}-g{:08}{}", name.step, name.generation,
                     name.of_ranks ? kDirectory : kFile);
}

std::optional<CheckpointName> parse_checkpoint_name(std::string_view name) {
  CheckpointName parsed;
  std::string_view rest = name;
  if (!take(rest, "step-", parsed.step) || !take(rest, "-g", parsed.generation) ||
      (rest != kFile && rest != kDirectory))
    return std::nullopt;
  parsed.of_ranks = rest == kDirectory;
  if (parsed.generation == 0 || parsed.generation > kMaxGeneration || format(parsed) != name)
    return std::nullopt;
  return parsed;
}

std::optional<CheckpointName> parse_damaged_name(std::string_view name) {
  const std::size_t found = name.find(kDamaged);
  if (found == std::string_view::npos) return std::nullopt;
  return parse_checkpoint_name(name.substr(0, found));
}

std::uint64_t generation_in(std::string_view name) {
  auto parsed = parse_checkpoint_name(name);
  if (!parsed) parsed = parse_damaged_name(name);
  return parsed ? parsed->generation : 0;
}

}  // namespace perdure::engine
