// Arbitrary bytes as a data.pkl: only perdure::Error may come out, and whatever is decoded survives
// a save.
#include "decoded.hpp"
#include "saved_again.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace perdure::fuzz;
  const auto shown = decoded(text_of(data, size), true);
  const auto plain = decoded(text_of(data, size), false);
  require(shown || !plain, "plain data that cannot be shown");
  if (!plain) return 0;
  fill(*plain);
  check_saved_again(plain->value);
  return 0;
}
