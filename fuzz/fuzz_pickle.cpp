// Arbitrary bytes as a data.pkl: only perdure::Error may come out, and whatever is decoded survives
// a save.
#include <charconv>
#include <cstdint>

#include "format/decoder.hpp"
#include "format/pickle_reader.hpp"
#include "saved_again.hpp"

namespace {

using namespace perdure;

// data/24 has 24 bytes, and so on: every size is there, so that the fuzzer need not find out which
// ones are.
std::optional<std::uint64_t> record_size(std::string_view key) {
  std::uint64_t size = 0;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), size);
  if (error != std::errc() || end != key.data() + key.size() || size > 4096) return std::nullopt;
  return size;
}

std::optional<format::Decoded> decoded(std::string_view bytes, bool allow_opaque) {
  try {
    return format::decode(format::read_pickle(bytes), record_size, allow_opaque);
  } catch (const Error&) {
    return std::nullopt;
  }
}

void fill(const format::Decoded& decoded) {
  for (const auto& storage : decoded.storages) {
    auto bytes = std::make_shared<std::vector<std::byte>>(storage->size + 1, std::byte{7});
    storage->data = bytes->data();
    storage->owner = bytes;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto shown = decoded(bytes, true);
  const auto plain = decoded(bytes, false);
  perdure::fuzz::require(shown || !plain, "plain data that cannot be shown");
  if (!plain) return 0;
  fill(*plain);
  perdure::fuzz::check_saved_again(plain->value);
  return 0;
}
