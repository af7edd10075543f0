#include "engine/stream_copy.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace perdure::engine {

#if defined(__x86_64__)

namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kStride = 2 * kLine;
constexpr std::size_t kAhead = 4 * kStride;              // bytes that are asked for in advance
constexpr std::size_t kWorthIt = std::size_t{64} << 10;  // less stays in the cache, and should

// `to` is aligned to a line, `size` a multiple of kStride.
__attribute__((target("avx2"))) void copy_lines(std::byte* to, const std::byte* from,
                                                std::size_t size) noexcept {
  for (std::size_t at = 0; at < size; at += kStride) {
    const auto* source = reinterpret_cast<const __m256i*>(from + at);
    auto* target = reinterpret_cast<__m256i*>(to + at);
    _mm_prefetch(reinterpret_cast<const char*>(from + at + kAhead), _MM_HINT_NTA);
    _mm_prefetch(reinterpret_cast<const char*>(from + at + kAhead + kLine), _MM_HINT_NTA);
    const __m256i a = _mm256_loadu_si256(source), b = _mm256_loadu_si256(source + 1);
    const __m256i c = _mm256_loadu_si256(source + 2), d = _mm256_loadu_si256(source + 3);
    _mm256_stream_si256(target, a);
    _mm256_stream_si256(target + 1, b);
    _mm256_stream_si256(target + 2, c);
    _mm256_stream_si256(target + 3, d);
  }
  _mm_sfence();  // others see it when they see what is stored after it
}

bool can_stream() noexcept {
  static const bool can = __builtin_cpu_supports("avx2") != 0;
  return can;
}

}  // namespace

void stream_copy(std::byte* to, ConstBytes from) noexcept {
  if (from.size() < kWorthIt || !can_stream()) {
    if (!from.empty()) std::memcpy(to, from.data(), from.size());
    return;
  }
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  const std::size_t body = (from.size() - head) / kStride * kStride;
  std::memcpy(to, from.data(), head);
  copy_lines(to + head, from.data() + head, body);
  std::memcpy(to + head + body, from.data() + head + body, from.size() - head - body);
}

#else

void stream_copy(std::byte* to, ConstBytes from) noexcept {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

#endif

}  // namespace perdure::engine
