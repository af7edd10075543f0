// Names of what is in a state, and patterns over them. A name is that of an entry and then the
// keys, joined by dots: "model.fc.weight", "optimizer".
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::engine {

// With "*" in it, each stands for any run of characters, dots too, and the pattern for whole names.
// Without, the pattern stands for that name and for all that is below it.
class NamePattern {
 public:
  explicit NamePattern(std::string text);
  const std::string& text() const noexcept { return text_; }
  std::size_t stars() const noexcept { return pieces_.size() - 1; }
  // What each star stands for; without stars, what of the name is below. Of several ways to match,
  // the one with the shortest first.
  std::optional<std::vector<std::string_view>> match(std::string_view name) const;

 private:
  std::string text_;
  std::vector<std::string> pieces_;  // between the stars
};

// From the names of a file to names here.
class NameRule {
 public:
  // Error(invalid) where the two have not equally many stars.
  NameRule(const std::string& from, const std::string& to);
  const std::string& from() const noexcept { return from_.text(); }
  std::optional<std::string> rename(std::string_view name) const;

 private:
  NamePattern from_;
  std::vector<std::string> to_;  // between the stars
};

// Which of `candidates` somebody may have meant by `wanted`: up to three, the likeliest first.
std::vector<std::string> similar_names(std::string_view wanted,
                                       const std::vector<std::string>& candidates);

}  // namespace perdure::engine
