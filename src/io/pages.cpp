#include "io/pages.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "io/errors.hpp"
#include "io/unique_fd.hpp"

namespace perdure::io {
namespace {

constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20;

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

// Without iostreams: what those make of a number is up to the program's locale, and CUDA's and
// LibTorch's libraries have been seen to bring parts of another standard library along.
std::string text_of(const std::string& path) {
  const UniqueFd file(real_system(), ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  if (!file) return text;
  std::array<char, 4096> part;
  for (ssize_t count; (count = ::read(file.get(), part.data(), part.size())) > 0;)
    text.append(part.data(), static_cast<std::size_t>(count));
  return text;
}

// Nothing for "max".
std::optional<std::uint64_t> number_at(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() ? std::optional(number) : std::nullopt;
}

// The number behind `name`, which begins a line.
std::optional<std::uint64_t> field(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    if (text.starts_with(name)) return number_at(text.substr(name.size()));
    text.remove_prefix(std::min(text.find('\n'), text.size() - 1) + 1);
  }
  return std::nullopt;
}

std::uint64_t left_of_machine() {
  const auto kib = field(text_of("/proc/meminfo"), "MemAvailable:");
  return kib ? *kib * 1024 : kUnlimited;
}

// A group's limit holds for all groups below it, so every level counts. Page cache of the group is
// part of its usage, though it can be had back.
std::uint64_t left_of_group(const std::string& folder, const char* limit, const char* usage) {
  const auto most = number_at(text_of(folder + limit));
  if (!most || *most > kUnlimited / 2) return kUnlimited;
  const std::string statistics = text_of(folder + "/memory.stat");
  std::uint64_t used = number_at(text_of(folder + usage)).value_or(0);
  for (const std::string name : {"inactive_file ", "active_file "}) {
    // The first version counts the groups below in a field of its own.
    const auto total = field(statistics, "total_" + name);
    used -= std::min(used, total ? *total : field(statistics, name).value_or(0));
  }
  return *most - std::min(*most, used);
}

std::uint64_t left_of_groups() {
  std::uint64_t left = kUnlimited;
  const std::string groups = text_of("/proc/self/cgroup");
  for (std::size_t begin = 0; begin < groups.size();) {
    const std::size_t end = std::min(groups.find('\n', begin), groups.size());
    const std::string line = groups.substr(begin, end - begin);
    begin = end + 1;
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
