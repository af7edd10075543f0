// Two states (two pickles, one behind the other): a layout that was made for the first and is used
// for the second gives the bytes of a save without it; and states of equal outlines have equal
// structure.
#include "decoded.hpp"
#include "format/encoder.hpp"
#include "format/outline.hpp"
#include "require.hpp"

namespace {

using namespace perdure;

std::string file_of(const Value& state, format::LayoutCache* cache) {
  std::string out;
  try {
    format::Encoder(state, {}, cache).write([&](ConstBytes bytes) {
      out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    });
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::invalid, std::string("not saved: ") + error.what());
    return std::string("refused: ") + error.what();
  }
  return out;
}

// The states with all of their numbers, of which there must be equally many where outlines agree.
void check_outlines(const Value& a, const Value& b) {
  const auto first = format::outline_of(a), second = format::outline_of(b);
  if (!first || !second || first->text != second->text) return;
  fuzz::require(first->numbers.size() == second->numbers.size() &&
                    first->memories.size() == second->memories.size(),
                "equal outlines of unequal structure");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // The STOP that ends the first pickle may stand in a text as well: then the second is no pickle.
  const std::string_view bytes = fuzz::text_of(data, size);
  const std::size_t end = bytes.find(".\x80");
  const std::string_view first = bytes.substr(0, end == bytes.npos ? size : end + 1);
  const auto a = fuzz::decoded(first, false);
  const auto b =
      end == bytes.npos ? fuzz::decoded(first, false) : fuzz::decoded(bytes.substr(end + 1), false);
  if (!a || !b) return 0;
  fuzz::fill(*a);
  fuzz::fill(*b);
  check_outlines(a->value, b->value);
  format::LayoutCache cache;
  for (const Value* state : {&a->value, &b->value, &a->value})
    fuzz::require(file_of(*state, &cache) == file_of(*state, nullptr),
                  "a layout that is used again gives other bytes");
  return 0;
}
