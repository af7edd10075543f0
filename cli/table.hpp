// Rows in columns as wide as their widest cell. Every cell is escaped: a file cannot draw outside
// of its own.
//
// On a terminal, a row that does not fit in it keeps its columns and loses nothing: the first long
// cell, a key, gets a line of its own above, and what stands last, a note, one below.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "terminal.hpp"

namespace perdure::cli {

class Table {
 public:
  enum class Align { left, right };
  struct Column {
    std::string title;
    Align align = Align::left;
    std::size_t limit = 80;  // longer cells are cut in the middle
    Style style = Style::plain;
    bool spare = false;  // says what others say, too: left out where a terminal is too narrow
  };
  struct Cell {
    Cell(std::string t, Style s = Style::plain) : text(std::move(t)), style(s) {}
    Cell(const char* t) : text(t) {}
    std::string text;
    Style style;  // instead of the column's, unless plain
  };

  explicit Table(std::vector<Column> columns);
  // One cell per column; missing ones at the end are empty. Leading spaces are kept, so trees can
  // indent.
  void add(std::vector<Cell> cells);
  bool empty() const noexcept { return rows_.empty(); }
  // Titles and rows, one line each. Columns in which every cell is empty are left out.
  std::string text() const;

 private:
  struct Layout {
    std::vector<std::size_t> widths;  // 0: left out
    std::size_t key = 0;              // the column that gives way
    std::size_t note = 0;             // the last one
    std::size_t room = SIZE_MAX;      // of a line
  };
  Layout layout() const;
  std::string row(const Layout& layout, std::vector<Cell> cells) const;
  std::string line(const Layout& layout, const std::vector<Cell>& cells) const;

  std::vector<Column> columns_;
  std::vector<std::size_t> widths_;  // of the widest cell; 0: nothing in that column
  std::vector<std::vector<Cell>> rows_;
};

}  // namespace perdure::cli
