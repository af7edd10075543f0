// Rules (a line each, old and new name with a tab between) and, behind an empty line, a pickle:
// what is renamed is the same tensors and numbers in other places, each once, and the state that it
// came from stays as it was.
#include <algorithm>
#include <map>

#include "decoded.hpp"
#include "engine/file_records.hpp"
#include "engine/renaming.hpp"
#include "format/same_value.hpp"
#include "require.hpp"

namespace {

using namespace perdure;

engine::RenameRules rules_of(std::string_view text) {
  engine::RenameRules rules;
  for (std::size_t begin = 0; begin < text.size() && rules.size() < 8;) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    const std::size_t tab = std::min(line.find('\t'), line.size());
    rules.emplace_back(line.substr(0, tab), tab < line.size() ? line.substr(tab + 1) : "");
    begin = end + 1;
  }
  return rules;
}

// How often each tensor is to be found; shared containers count once, as for the walk.
std::map<const Tensor*, int> tensors_in(const Value& value) {
  std::map<const Tensor*, int> found;
  engine::for_each_tensor(value, [&](const KeyPath&, const Tensor& tensor) { ++found[&tensor]; });
  return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes = fuzz::text_of(data, size);
  const std::size_t gap = bytes.find("\n\n");
  if (gap == bytes.npos) return 0;
  const auto state = fuzz::decoded(bytes.substr(gap + 2), false);
  const auto before = fuzz::decoded(bytes.substr(gap + 2), false);
  if (!state || !state->value.is_mapping()) return 0;
  fuzz::fill(*state);
  fuzz::fill(*before);
  try {
    engine::Renaming renaming(rules_of(bytes.substr(0, gap)));
    const Value renamed(
        renaming.apply(state->value.as_dict(), {"model", "model.head", "optimizer"}));
    const auto were = tensors_in(state->value), are = tensors_in(renamed);
    fuzz::require(std::ranges::equal(
                      were, are, {}, [](const auto& x) { return x.first; },
                      [](const auto& x) { return x.first; }),
                  "a tensor is lost or new");
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::invalid, std::string("renaming: ") + error.what());
  }
  const std::string difference = test::Comparison::difference(before->value, state->value);
  fuzz::require(difference.empty(), "renaming changes the file's own tree: " + difference);
  return 0;
}
