#include "format/torch_script.hpp"

#include <utility>

#include "format/torch_zip.hpp"

namespace perdure::format {
namespace {

bool is_empty(const Value& value) { return value.is_sequence() && value.as_items().empty(); }

// A root that has no attributes, as a tensor of LibTorch's may be, gets a dict around it.
Dict& attributes_of(Value& root) {
  if (!root.is_mapping()) root = Value(Dict{{"(root)", std::move(root)}});
  return root.as_dict();
}

}  // namespace

void read_script_structure(const ZipRecords& zip, bool allow_opaque, Contents& contents) {
  Value root =
      read_pickle_record(zip, {.name = "data.pkl", .folder = "data"}, allow_opaque, contents);
  Value constants = read_pickle_record(zip, {.name = "constants.pkl", .folder = "constants"},
                                       allow_opaque, contents);
  if (!is_empty(constants)) attributes_of(root).set("(constants)", std::move(constants));
  contents.value = std::move(root);
}

}  // namespace perdure::format
