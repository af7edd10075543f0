#include "io/pages.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "io/errors.hpp"

namespace perdure::io {
namespace {

constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20;

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

std::optional<std::uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  std::uint64_t number = 0;
  if (!(file >> text)) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;  // "max"
  return number;
}

std::uint64_t left_of_machine() {
  std::ifstream file("/proc/meminfo");
  for (std::string name, unit; file >> name;) {
    std::uint64_t kib = 0;
    if (name == "MemAvailable:" && file >> kib) return kib * 1024;
    std::getline(file, unit);
  }
  return kUnlimited;
}

// A group's limit holds for all groups below it, so every level counts. Page cache of the group is
// part of its usage, though it can be had back.
std::uint64_t left_of_group(const std::string& folder, const char* limit, const char* usage) {
  const auto most = number_in(folder + limit);
  if (!most || *most > kUnlimited / 2) return kUnlimited;
  std::uint64_t used = number_in(folder + usage).value_or(0);
  std::ifstream statistics(folder + "/memory.stat");
  std::string name;
  for (std::uint64_t bytes = 0; statistics >> name >> bytes;)
    if (name == "inactive_file" || name == "total_inactive_file") used -= std::min(used, bytes);
  return *most - std::min(*most, used);
}

std::uint64_t left_of_groups() {
  std::uint64_t left = kUnlimited;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const bool second = line.starts_with("0::");
    const std::size_t controller = line.find(":memory:");
    if (!second && controller == std::string::npos) continue;
    const std::string root = second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    std::string group = second ? line.substr(3) : line.substr(controller + 8);
    for (;; group.resize(group.rfind('/'))) {
      left = std::min(left, second ? left_of_group(root + group, "/memory.max", "/memory.current")
                                   : left_of_group(root + group, "/memory.limit_in_bytes",
                                                   "/memory.usage_in_bytes"));
      if (group.rfind('/') == std::string::npos) break;
    }
  }
  return left;
}

}  // namespace

std::shared_ptr<std::byte> allocate_pages(std::uint64_t size) {
  // The surplus before and after the aligned part is address space that is never touched.
  const std::size_t mapped = size + kHugePage;
  void* const begin =
      ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED)
    throw Error(ErrorCode::full,
                fmt::format("no memory for staging: {} wanted; give the manager fewer "
                            "staging_bytes",
                            format_bytes(size)),
                ENOMEM);
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t aligned = (address + kHugePage - 1) / kHugePage * kHugePage;
  ::madvise(begin, mapped, MADV_HUGEPAGE);
  // A child would make every page that the parent writes next a copy.
  ::madvise(begin, mapped, MADV_DONTFORK);
  return {reinterpret_cast<std::byte*>(aligned),
          [begin, mapped](std::byte*) { ::munmap(begin, mapped); }};
}

void populate(MutableBytes memory) noexcept {
  if (!memory.empty()) ::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE);
}

std::uint64_t available_memory() noexcept {
  try {
    return std::min(left_of_machine(), left_of_groups());
  } catch (const std::exception&) {
    return kUnlimited;
  }
}

}  // namespace perdure::io
