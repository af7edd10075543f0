// Little-endian integers in byte strings. One place, so that no parser does its own arithmetic on
// bytes.
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <perdure/error.hpp>
#include <string>
#include <string_view>

namespace perdure::format {

template <std::unsigned_integral T>
void put_at(char* to, T x) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    to[i] = static_cast<char>(static_cast<unsigned char>(x >> (8 * i)));
}

template <std::unsigned_integral T>
void put(std::string& out, T x) {
  char bytes[sizeof(T)];
  put_at(bytes, x);
  out.append(bytes, sizeof(T));
}

template <std::unsigned_integral T>
T get(const char* from) {
  std::uint64_t x = 0;
  for (std::size_t i = sizeof(T); i-- > 0;) x = (x << 8) | static_cast<unsigned char>(from[i]);
  return static_cast<T>(x);
}

// Takes integers and byte runs off the front of a span; never reads past its end.
class ByteReader {
 public:
  // `what` names the bytes in messages: "zip directory". `base` is their offset in the file.
  ByteReader(std::string_view bytes, std::string_view what, std::uint64_t base = 0)
      : bytes_(bytes), what_(what), base_(base) {}

  template <std::unsigned_integral T>
  T take() {
    return get<T>(take_bytes(sizeof(T)).data());
  }
  std::string_view take_bytes(std::uint64_t count) {
    if (count > bytes_.size() - at_)
      throw Error(ErrorCode::corrupt, std::string(what_) + " ends in the middle, at offset " +
                                          std::to_string(base_ + bytes_.size()));
    const std::string_view out = bytes_.substr(at_, count);
    at_ += count;
    return out;
  }
  std::uint64_t at() const { return at_; }
  std::uint64_t left() const { return bytes_.size() - at_; }
  bool done() const { return left() == 0; }

 private:
  std::string_view bytes_;
  std::string_view what_;
  std::uint64_t base_;
  std::uint64_t at_ = 0;
};

inline ConstBytes as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace perdure::format
