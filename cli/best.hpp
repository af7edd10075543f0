// --best and --keep-best: which checkpoints are the best ones.
#pragma once

#include <perdure/checkpoint_manager.hpp>
#include <string>

namespace perdure::cli {

// METRIC, METRIC:max, METRIC:min:3; a metric's name may have colons of its own.
Best parse_best(std::string text);

}  // namespace perdure::cli
