// Arbitrary bytes as a compressed record: only perdure::Error may come out, and what is found whole
// is what zlib makes of it.
#include <zlib.h>

#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"
#include "format/unpack.hpp"
#include "require.hpp"

namespace {

constexpr std::uint64_t kMax = 1 << 20;

// What the whole of `bytes` unpacks to, in one call; nothing where it is no deflate stream.
std::optional<std::string> unpacked(std::string_view bytes) {
  z_stream stream{};
  inflateInit2(&stream, -MAX_WBITS);
  std::string out(kMax, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const bool whole = inflate(&stream, Z_FINISH) == Z_STREAM_END && stream.avail_in == 0;
  out.resize(stream.total_out);
  inflateEnd(&stream);
  return whole ? std::optional(out) : std::nullopt;
}

bool is_whole(std::string_view bytes, std::uint64_t size, std::uint32_t crc) {
  using namespace perdure;
  const test::MemorySource source(std::string(bytes), "memory.pt");
  try {
    format::check_unpacked(source, {{"code/x", 0, bytes.size(), crc}, size});
    return true;
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::corrupt, error.what());
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace perdure;
  const std::string_view bytes = fuzz::text_of(data, size);
  const auto expected = unpacked(bytes);
  if (!expected) {
    fuzz::require(!is_whole(bytes, size, 0), "what is no deflate stream is found whole");
    return 0;
  }
  const std::uint32_t crc = format::crc32(format::as_bytes(*expected));
  fuzz::require(is_whole(bytes, expected->size(), crc), "what is whole is not found so");
  fuzz::require(!is_whole(bytes, expected->size(), crc ^ 1), "a wrong checksum is found right");
  fuzz::require(!is_whole(bytes, expected->size() + 1, crc), "a wrong size is found right");
  return 0;
}
