#include "format/unpack.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>

#include "format/crc32.hpp"

namespace perdure::format {
namespace {

constexpr std::size_t kPiece = std::size_t{64} << 10;

class Inflater {
 public:
  Inflater(const Source& source, const PackedRecord& packed) : source_(source), packed_(packed) {
    if (inflateInit2(&stream_, -MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;

  void run() {
    int state = Z_OK;
    while (state != Z_STREAM_END) {
      if (stream_.avail_in == 0) read();
      stream_.next_out = reinterpret_cast<Bytef*>(out_.data());
      stream_.avail_out = static_cast<uInt>(out_.size());
      state = inflate(&stream_, Z_NO_FLUSH);
      if (state != Z_OK && state != Z_STREAM_END) damaged();
      take(out_.size() - stream_.avail_out);
    }
    if (unpacked_ != packed_.unpacked || read_ != packed_.record.size || stream_.avail_in != 0 ||
        crc_ != packed_.record.crc32)
      damaged();
  }

 private:
  [[noreturn]] void damaged() const {
    throw Error(ErrorCode::corrupt,
                fmt::format("record {} is damaged: its {} bytes at offset {} do not unpack to what "
                            "they were packed of ({} bytes)",
                            repr(Value(packed_.record.name)), packed_.record.size,
                            packed_.record.offset, packed_.unpacked));
  }
  void read() {
    const std::uint64_t left = packed_.record.size - read_;
    if (left == 0) damaged();
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(left, in_.size()));
    source_.read(packed_.record.offset + read_, std::span(in_).first(size));
    read_ += size;
    stream_.next_in = reinterpret_cast<Bytef*>(in_.data());
    stream_.avail_in = static_cast<uInt>(size);
  }
  void take(std::size_t size) {
    unpacked_ += size;
    if (unpacked_ > packed_.unpacked) damaged();
    crc_ = format::crc32(std::span(out_).first(size), crc_);
  }

  const Source& source_;
  const PackedRecord& packed_;
  z_stream stream_{};
  std::array<std::byte, kPiece> in_;
  std::array<std::byte, kPiece> out_;
  std::uint64_t read_ = 0;
  std::uint64_t unpacked_ = 0;
  std::uint32_t crc_ = 0;
};

}  // namespace

void check_unpacked(const Source& source, const PackedRecord& packed) {
  Inflater(source, packed).run();
}

}  // namespace perdure::format
