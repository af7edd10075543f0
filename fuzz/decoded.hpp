// Arbitrary bytes as a data.pkl, for the targets that need values of all kinds.
#pragma once

#include <charconv>
#include <memory>
#include <optional>
#include <vector>

#include "format/decoder.hpp"
#include "format/pickle_reader.hpp"

namespace perdure::fuzz {

// data/24 has 24 bytes, and so on: every size is there, so that the fuzzer need not find out which
// ones are.
inline std::optional<std::uint64_t> record_size(std::string_view key) {
  std::uint64_t size = 0;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), size);
  if (error != std::errc() || end != key.data() + key.size() || size > 4096) return std::nullopt;
  return size;
}

inline std::optional<format::Decoded> decoded(std::string_view bytes, bool allow_opaque) {
  try {
    return format::decode(format::read_pickle(bytes), record_size, allow_opaque);
  } catch (const Error&) {
    return std::nullopt;
  }
}

// Gives every storage its bytes.
inline void fill(const format::Decoded& decoded) {
  for (const auto& storage : decoded.storages) {
    auto bytes = std::make_shared<std::vector<std::byte>>(storage->size + 1, std::byte{7});
    storage->data = bytes->data();
    storage->owner = bytes;
  }
}

}  // namespace perdure::fuzz
