#include <perdure/inspect.hpp>
#include <utility>

#include "engine/leaves.hpp"

namespace perdure {

std::vector<Entry> entries(const CheckpointFile& file, std::string_view pattern) {
  std::vector<Entry> result;
  for (engine::Leaf& leaf : engine::leaves_of(file.value()))
    if (engine::selects(pattern, leaf.name))
      result.push_back({std::move(leaf.name), std::move(leaf.path), *leaf.value});
  return result;
}

}  // namespace perdure
