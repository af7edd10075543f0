#include "table.hpp"

#include <algorithm>

#include "text.hpp"

namespace perdure::cli {
namespace {

std::string pad(const std::string& cell, std::size_t width, Table::Align align) {
  const std::string space(width - std::min(width, display_width(cell)), ' ');
  return align == Table::Align::right ? space + cell : cell + space;
}

}  // namespace

Table::Table(std::vector<Column> columns)
    : columns_(std::move(columns)), widths_(columns_.size()) {}

void Table::add(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  for (std::size_t i = 0; i < cells.size(); ++i) {
    // Cut first, so that a huge cell costs nothing; escaping then grows what is left at most
    // tenfold.
    cells[i] = escape(shorten(cells[i], columns_[i].limit));
    widths_[i] = std::max(widths_[i], display_width(cells[i]));
  }
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<std::string> titles;
  for (const Column& column : columns_) titles.push_back(column.title);
  std::string out = line(titles);
  for (const auto& row : rows_) out += line(row);
  return out;
}

std::string Table::line(const std::vector<std::string>& cells) const {
  std::string out;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (widths_[i] == 0) continue;
    if (!out.empty()) out += "  ";
    out += pad(cells[i], std::max(widths_[i], display_width(columns_[i].title)), columns_[i].align);
  }
  out.erase(out.find_last_not_of(' ') + 1);
  return out + '\n';
}

}  // namespace perdure::cli
