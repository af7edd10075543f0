#include "best.hpp"

namespace perdure::cli {

Best parse_best(std::string text) {
  Best best;
  const auto last_part = [&] {
    const std::size_t colon = text.rfind(':');
    return colon == std::string::npos ? std::string() : text.substr(colon + 1);
  };
  const auto cut = [&] { text.resize(text.rfind(':')); };
  if (const std::string count = last_part();
      !count.empty() && count.size() < 10 && count.find_first_not_of("0123456789") == count.npos) {
    best.count = std::stoul(count);
    cut();
  }
  if (const std::string mode = last_part(); mode == "min" || mode == "max") {
    best.mode = mode == "min" ? Mode::min : Mode::max;
    cut();
  }
  best.metric = text;
  return best;
}

}  // namespace perdure::cli
