#include "engine/optimizer_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

namespace perdure::engine {
namespace {

using Pairs = OptimizerPairs;
constexpr std::size_t kNone = Pairs::kNone;
constexpr std::size_t kMaxRows = 40;
constexpr std::size_t kMaxShapes = 6;

// Lines with their columns aligned, the first kMaxRows of them.
class Table {
 public:
  using Row = std::array<std::string, 4>;
  explicit Table(Row head) { rows_.push_back(std::move(head)); }

  // Only as many are made as are shown.
  template <class MakeRow>
  void add(const MakeRow& make) {
    if (rows_.size() <= kMaxRows)
      rows_.push_back(make());
    else
      ++left_out_;
  }
  bool empty() const { return rows_.size() == 1; }

  std::string text() const {
    std::array<std::size_t, 4> widths{};
    for (const Row& row : rows_)
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    std::string text;
    for (const Row& row : rows_) {
      std::string line = "\n    ";
      for (std::size_t i = 0; i < row.size(); ++i)
        line += fmt::format("{:<{}}  ", row[i], widths[i]);
      text += line.substr(0, line.find_last_not_of(' ') + 1);
    }
    if (left_out_ != 0) text += fmt::format("\n    and {} more that differ", left_out_);
    return text;
  }

 private:
  std::vector<Row> rows_;
  std::size_t left_out_ = 0;
};

std::string format_shape(const Pairs::Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string place_of(const Pairs::Parameter& param) {
  const std::string group = fmt::format("group {}", param.group);
  return param.shape ? group + " " + format_shape(*param.shape) : group;
}

std::string name_of(const Pairs::Parameter& param, std::size_t number) {
  return param.name.empty() ? fmt::format("parameter {}", number) : param.name;
}

std::string fate_of(const Pairs& pairs, std::size_t number, const HasState& has_state) {
  const auto& param = pairs.own.params[number];
  const auto start = [&] {
    return has_state(number) ? "keeps the state it has here" : "starts without momentum";
  };
  if (param.partner == kNone) return fmt::format("new: {}", start());
  const auto& in_file = pairs.file.params[param.partner];
  if (pairs.has_other_shape(param))
    return fmt::format("shape {} in the file, {} here: {}", format_shape(*in_file.shape),
                       format_shape(*param.shape), start());
  if (in_file.group != param.group)
    return fmt::format("moved from group {} to {}: keeps its momentum", in_file.group, param.group);
  const bool split = pairs.own.groups[param.group].counterpart == kNone;
  return fmt::format("{} group {}: keeps its momentum",
                     split ? "split off from" : "moved from the file's", param.group);
}

void add_own(Table& table, const Pairs& pairs, std::size_t number, const HasState& has_state) {
  table.add([&]() -> Table::Row {
    const auto& param = pairs.own.params[number];
    return {name_of(param, number),
            param.partner == kNone ? "-" : place_of(pairs.file.params[param.partner]),
            place_of(param), fate_of(pairs, number, has_state)};
  });
}

void add_dropped(Table& table, const Pairs& pairs, std::size_t number) {
  table.add([&]() -> Table::Row {
    const auto& param = pairs.file.params[number];
    return {name_of(param, number), place_of(param), "-", "not here: its momentum is dropped"};
  });
}

std::string options_of(const Pairs& pairs, std::size_t g) {
  const std::string own = fmt::format("\n    group {}: its options are those of this program", g);
  const std::size_t mostly = pairs.own.groups[g].mostly;
  return mostly == kNone ? own
                         : own + fmt::format(", but lr is that of group {} in the file", mostly);
}

std::string all_options(const Pairs& pairs) {
  std::string text;
  std::size_t count = 0;
  for (std::size_t g = 0; g < pairs.own.groups.size(); ++g)
    if (!pairs.own.groups[g].continued && pairs.own.groups[g].size != 0 && ++count <= kMaxRows)
      text += options_of(pairs, g);
  if (count > kMaxRows) text += fmt::format("\n    and {} more groups like that", count - kMaxRows);
  return text;
}

}  // namespace

std::string table_of(const Pairs& pairs, const HasState& has_state, bool done) {
  Table table({"parameter", "in the file", "here", done ? "what happened" : "what would happen"});
  std::size_t unchanged = 0;
  for (std::size_t i = 0; i < pairs.own.params.size(); ++i) {
    const auto& param = pairs.own.params[i];
    if (pairs.keeps_state(param) && !pairs.is_moved(param))
      ++unchanged;
    else
      add_own(table, pairs, i, has_state);
  }
  for (std::size_t i = 0; i < pairs.file.params.size(); ++i)
    if (pairs.file.params[i].partner == kNone) add_dropped(table, pairs, i);
  std::string text = table.text();
  if (unchanged != 0)
    text += fmt::format("\n    and {} other{} momentum", unchanged,
                        unchanged == 1 ? " keeps its" : "s keep their");
  return text + all_options(pairs);
}

namespace {

// "3 parameters [2] [3, 4] [4]" of the group whose parameters begin at `first`.
std::string content_of(const Pairs::Side& side, std::size_t group, std::size_t first) {
  if (group >= side.groups.size()) return "-";
  const std::size_t size = side.groups[group].size;
  std::string text = fmt::format("{} parameter{}", size, size == 1 ? "" : "s");
  for (std::size_t i = 0; i < std::min(size, kMaxShapes); ++i)
    if (const auto& shape = side.params[first + i].shape) text += " " + format_shape(*shape);
  return size > kMaxShapes ? text + " ..." : text;
}

std::size_t size_of(const Pairs::Side& side, std::size_t group) {
  return group < side.groups.size() ? side.groups[group].size : 0;
}

}  // namespace

std::string table_of_positions(const Pairs& pairs) {
  Table table({"", "in the file", "here", ""});
  for (std::size_t i = 0; i < pairs.own.params.size(); ++i)
    if (const auto& param = pairs.own.params[i]; pairs.has_other_shape(param))
      table.add([&]() -> Table::Row {
        return {fmt::format("parameter {}", i), format_shape(*pairs.file.params[i].shape),
                format_shape(*param.shape), ""};
      });
  if (!table.empty()) return table.text();
  const std::size_t groups = std::max(pairs.file.groups.size(), pairs.own.groups.size());
  for (std::size_t g = 0, in_file = 0, here = 0; g < groups; ++g) {
    table.add([&]() -> Table::Row {
      return {fmt::format("group {}", g), content_of(pairs.file, g, in_file),
              content_of(pairs.own, g, here), ""};
    });
    in_file += size_of(pairs.file, g);
    here += size_of(pairs.own, g);
  }
  return table.text();
}

}  // namespace perdure::engine
