// Rows in columns as wide as their widest cell. Every cell is escaped: a file cannot draw outside
// of its own.
#pragma once

#include <string>
#include <vector>

namespace perdure::cli {

class Table {
 public:
  enum class Align { left, right };
  struct Column {
    std::string title;
    Align align = Align::left;
    std::size_t limit = 80;  // longer cells are cut in the middle
  };

  explicit Table(std::vector<Column> columns);
  // One cell per column; missing ones at the end are empty. Leading spaces are kept, so trees can
  // indent.
  void add(std::vector<std::string> cells);
  bool empty() const noexcept { return rows_.empty(); }
  // Titles and rows, one line each. Columns in which every cell is empty are left out.
  std::string text() const;

 private:
  std::string line(const std::vector<std::string>& cells) const;

  std::vector<Column> columns_;
  std::vector<std::size_t> widths_;  // of the widest cell; 0: nothing in that column
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace perdure::cli
