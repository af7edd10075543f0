#include "engine/misfit.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "format/utf8.hpp"

namespace perdure::engine {
namespace {

constexpr std::array kKinds = {Mismatch::shape, Mismatch::dtype, Mismatch::missing,
                               Mismatch::unexpected};
constexpr std::size_t kMaxRows = 20;  // of a kind: what a person will read

const char* word(Mismatch what) {
  switch (what) {
    case Mismatch::shape:
      return "wrong shape";
    case Mismatch::dtype:
      return "wrong dtype";
    case Mismatch::missing:
      return "missing";
    default:
      return "unexpected";
  }
}

using Row = std::array<std::string, 4>;

// Names are the file's: any characters, and as many as there is room for.
std::string shown(const std::string& name) {
  constexpr std::size_t kMaxName = 200;
  std::size_t end = std::min(name.size(), kMaxName);
  while (end < name.size() && end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0) == 0x80)
    --end;
  return format::printable(name.substr(0, end)) + (end < name.size() ? "..." : "");
}

std::string line_of(const Row& row, const std::array<std::size_t, 3>& widths) {
  return fmt::format("\n  {:<{}}  {:<{}}  {:<{}}  {}", row[0], widths[0], row[1], widths[1], row[2],
                     widths[2], row[3]);
}

}  // namespace

std::string describe(const Value& value) {
  if (value.kind() != Kind::tensor) return fmt::format("a {}", kind_name(value.kind()));
  const Tensor& tensor = value.as_tensor();
  return fmt::format("{} [{}]", dtype_name(tensor.dtype), fmt::join(tensor.shape, ", "));
}

std::string table_of(const std::vector<Misfit>& misfits) {
  const Row head{"name", "what", "in the file", "here"};
  std::vector<Row> rows{head};
  for (const Mismatch kind : kKinds) {
    std::size_t count = 0;
    for (const Misfit& misfit : misfits)
      if (misfit.what == kind && ++count <= kMaxRows)
        rows.push_back({shown(misfit.name), word(kind), misfit.in_file, misfit.here});
    if (count > kMaxRows)
      rows.push_back({fmt::format("... and {} more", count - kMaxRows), word(kind), "", ""});
  }
  std::array<std::size_t, 3> widths{};
  for (const Row& row : rows)
    for (std::size_t i = 0; i < widths.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string table;
  for (const Row& row : rows) {
    table += line_of(row, widths);
    table.erase(table.find_last_not_of(' ') + 1);
  }
  return table;
}

}  // namespace perdure::engine
