#include "table.hpp"

#include <algorithm>
#include <utility>

#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr std::size_t kGap = 2;
constexpr std::size_t kLeastKey = 16;  // with less room, all keys go above
constexpr std::size_t kIndent = 4;

// Of a line with columns so wide.
std::size_t total(const std::vector<std::size_t>& widths) {
  std::size_t sum = 0;
  for (const std::size_t width : widths) sum += width == 0 ? 0 : width + kGap;
  return sum == 0 ? 0 : sum - kGap;
}

std::size_t indentation(const std::string& text) {
  return std::min(text.find_first_not_of(' '), text.size());
}

}  // namespace

Table::Table(std::vector<Column> columns)
    : columns_(std::move(columns)), widths_(columns_.size()) {}

void Table::add(std::vector<Cell> cells) {
  cells.resize(columns_.size(), Cell(""));
  for (std::size_t i = 0; i < cells.size(); ++i) {
    // Cut first, so that a huge cell costs nothing; escaping then grows what is left at most
    // tenfold.
    cells[i].text = escape(shorten(cells[i].text, columns_[i].limit));
    widths_[i] = std::max(widths_[i], display_width(cells[i].text));
  }
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  const Layout layout = this->layout();
  std::vector<Cell> titles;
  for (const Column& column : columns_) titles.emplace_back(column.title, Style::bold);
  std::string out = line(layout, titles);
  for (const auto& cells : rows_) out += row(layout, cells);
  return out;
}

Table::Layout Table::layout() const {
  Layout out{widths_, 0, columns_.size() - 1};
  for (std::size_t i = 0; i < columns_.size(); ++i)
    if (widths_[i] > 0) out.widths[i] = std::max(widths_[i], display_width(columns_[i].title));
  out.room = output_columns().value_or(SIZE_MAX);
  while (out.key + 1 < columns_.size() && display_width(columns_[out.key].title) < 2) ++out.key;
  const auto too_wide = [&] { return total(out.widths) > out.room; };
  for (std::size_t i = columns_.size(); too_wide() && i-- > 0;)
    if (columns_[i].spare) out.widths[i] = 0;
  while (out.note > 0 && out.widths[out.note] == 0) --out.note;
  // A note goes below where it must; there it takes no column's place.
  if (too_wide() && columns_[out.note].align == Align::left && out.note > out.key)
    out.widths[out.note] = std::min(out.widths[out.note], display_width(columns_[out.note].title));
  if (std::size_t& key = out.widths[out.key];
      too_wide() && columns_[out.key].align == Align::left) {
    const std::size_t others = total(out.widths) - key;
    const std::size_t room = out.room - std::min(out.room, others);
    key = std::min(key, room < kLeastKey ? kIndent : room);
  }
  return out;
}

std::string Table::row(const Layout& layout, std::vector<Cell> cells) const {
  std::string above, below;
  Cell& key = cells[layout.key];
  const std::size_t indent = indentation(key.text);
  if (display_width(key.text) > layout.widths[layout.key] && layout.key + 1 < cells.size()) {
    std::vector<Cell> first(cells.begin(), cells.begin() + static_cast<long>(layout.key) + 1);
    above = line(layout, first);
    for (std::size_t i = 0; i <= layout.key; ++i) cells[i] = Cell("");
  }
  Cell& note = cells[layout.note];
  const std::size_t width = layout.widths[layout.note];
  const std::size_t left = total(layout.widths) - width;  // of it
  if (display_width(note.text) > width && left + display_width(note.text) > layout.room) {
    const Style style = note.style == Style::plain ? columns_[layout.note].style : note.style;
    below = std::string(indent + kIndent, ' ') + styled(note.text, style) + '\n';
    note = Cell("");
  }
  return above + line(layout, cells) + below;
}

std::string Table::line(const Layout& layout, const std::vector<Cell>& cells) const {
  std::string out;
  std::size_t waiting = 0;  // spaces, which are written only before something
  bool first = true;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (layout.widths[i] == 0) continue;
    if (!std::exchange(first, false)) waiting += kGap;
    const Cell& cell = cells[i];
    const std::size_t width = display_width(cell.text);
    const std::size_t space = layout.widths[i] - std::min(layout.widths[i], width);
    if (columns_[i].align == Align::right) waiting += space;
    const std::size_t indent = indentation(cell.text);
    if (indent < cell.text.size()) {
      out += std::string(std::exchange(waiting, 0) + indent, ' ') +
             styled(cell.text.substr(indent),
                    cell.style == Style::plain ? columns_[i].style : cell.style);
      waiting = 0;
    } else {
      waiting += width;
    }
    if (columns_[i].align == Align::left) waiting += space;
  }
  return out + '\n';
}

}  // namespace perdure::cli
