#include "format/pickle_number.hpp"

#include <bit>
#include <cstdint>

#include "format/coding.hpp"
#include "format/pickle_opcodes.hpp"

namespace perdure::format {
namespace {

void put_op(std::string& out, Op x) { out.push_back(static_cast<char>(x)); }

// LONG1: little-endian two's complement, as few bytes as hold it.
void put_long(std::string& out, std::string_view bytes) {
  put_op(out, Op::long1);
  put<std::uint8_t>(out, static_cast<std::uint8_t>(bytes.size()));
  out += bytes;
}

void put_large(std::string& out, std::int64_t x) {
  char bytes[8];
  put_at(bytes, static_cast<std::uint64_t>(x));
  std::size_t size = sizeof bytes;
  const char sign = x < 0 ? '\xff' : '\0';
  const auto is_redundant = [&] {
    const bool next_negative = (static_cast<unsigned char>(bytes[size - 2]) & 0x80) != 0;
    return bytes[size - 1] == sign && next_negative == (x < 0);
  };
  while (is_redundant()) --size;
  put_long(out, {bytes, size});
}

}  // namespace

void put_integer(std::string& pickle, std::int64_t x) {
  if (x >= 0 && x < 256) {
    put_op(pickle, Op::bin_int1);
    put<std::uint8_t>(pickle, static_cast<std::uint8_t>(x));
  } else if (x >= 0 && x < 65536) {
    put_op(pickle, Op::bin_int2);
    put<std::uint16_t>(pickle, static_cast<std::uint16_t>(x));
  } else if (x >= INT32_MIN && x <= INT32_MAX) {
    put_op(pickle, Op::bin_int);
    put<std::uint32_t>(pickle, static_cast<std::uint32_t>(x));
  } else {
    put_large(pickle, x);
  }
}

void put_real(std::string& pickle, double x) {
  put_op(pickle, Op::bin_float);
  put<std::uint64_t>(pickle, __builtin_bswap64(std::bit_cast<std::uint64_t>(x)));  // big-endian
}

void put_number(std::string& pickle, const Value& number) {
  switch (number.kind()) {
    case Kind::none:
      return put_op(pickle, Op::none);
    case Kind::boolean:
      return put_op(pickle, number.as_bool() ? Op::new_true : Op::new_false);
    case Kind::real:
      return put_real(pickle, number.as_double());
    default:
      if (const BigInt* big = number.as_big_int()) return put_long(pickle, big->bytes);
      return put_integer(pickle, number.as_int());
  }
}

}  // namespace perdure::format
