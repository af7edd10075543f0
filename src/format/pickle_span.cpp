#include "format/pickle_span.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "format/coding.hpp"
#include "format/pickle_opcodes.hpp"
#include "format/pickle_reader.hpp"

namespace perdure::format {
namespace {

constexpr std::uint64_t kWindow = std::uint64_t{256} << 10;

// Front to back over a source, skipping at no cost.
class Walk {
 public:
  Walk(const Source& source, std::uint64_t at) : source_(source), begin_(at), at_(at) {}

  std::uint64_t at() const { return at_; }
  template <std::unsigned_integral T>
  T take() {
    char bytes[sizeof(T)];
    for (char& byte : bytes) byte = next();
    return get<T>(bytes);
  }
  void skip(std::uint64_t count) {
    if (count > source_.size() - at_) ends();
    at_ += count;
  }
  void skip_line() {
    while (next() != '\n') {
    }
  }

 private:
  [[noreturn]] void ends() const {
    throw Error(ErrorCode::corrupt,
                fmt::format("the pickle at offset {} does not end: the file was cut off, or a "
                            "length in it is wrong",
                            begin_));
  }
  char next() {
    if (at_ >= source_.size()) ends();
    if (at_ < window_at_ || at_ - window_at_ >= window_.size()) {
      window_.resize(std::min(kWindow, source_.size() - at_));
      source_.read(at_, std::as_writable_bytes(std::span(window_)));
      window_at_ = at_;
    }
    return window_[at_++ - window_at_];
  }

  const Source& source_;
  const std::uint64_t begin_;
  std::uint64_t at_;
  std::vector<char> window_;
  std::uint64_t window_at_ = 0;
};

void skip_argument(Walk& walk, Op op) {
  switch (op) {
    case Op::protocol:
    case Op::bin_int1:
    case Op::bin_put:
    case Op::bin_get:
      return walk.skip(1);
    case Op::bin_int2:
      return walk.skip(2);
    case Op::bin_int:
    case Op::long_bin_put:
    case Op::long_bin_get:
      return walk.skip(4);
    case Op::frame:
    case Op::bin_float:
      return walk.skip(8);
    case Op::long1:
    case Op::short_bin_unicode:
    case Op::short_bin_string:
    case Op::short_bin_bytes:
      return walk.skip(walk.take<std::uint8_t>());
    case Op::long4:
    case Op::bin_unicode:
    case Op::bin_string:
    case Op::bin_bytes:
      return walk.skip(walk.take<std::uint32_t>());
    case Op::bin_unicode8:
    case Op::bin_bytes8:
    case Op::byte_array8:
      return walk.skip(walk.take<std::uint64_t>());
    case Op::global:
      walk.skip_line();
      return walk.skip_line();
    case Op::none:
    case Op::new_true:
    case Op::new_false:
    case Op::mark:
    case Op::empty_list:
    case Op::append:
    case Op::appends:
    case Op::empty_tuple:
    case Op::tuple:
    case Op::tuple1:
    case Op::tuple2:
    case Op::tuple3:
    case Op::empty_dict:
    case Op::set_item:
    case Op::set_items:
    case Op::empty_set:
    case Op::add_items:
    case Op::frozen_set:
    case Op::stack_global:
    case Op::reduce:
    case Op::new_obj:
    case Op::new_obj_ex:
    case Op::build:
    case Op::bin_pers_id:
    case Op::memoize:
    case Op::stop:
      return;
  }
  throw Error(ErrorCode::unsupported,
              fmt::format("pickle opcode 0x{:02x} at offset {}, which no PyTorch file needs",
                          static_cast<unsigned>(op), walk.at() - 1));
}

std::uint64_t end_of_pickle(const Source& source, std::uint64_t offset) {
  Walk walk(source, offset);
  for (Op op{}; op != Op::stop;) {
    op = static_cast<Op>(walk.take<std::uint8_t>());
    skip_argument(walk, op);
    if (walk.at() - offset > kMaxPickle)
      throw Error(ErrorCode::unsupported,
                  fmt::format("the pickle at offset {} is longer than 1 GiB", offset));
  }
  return walk.at();
}

}  // namespace

std::string read_pickle_at(const Source& source, std::uint64_t offset) {
  if (offset > source.size())
    throw Error(ErrorCode::corrupt, fmt::format("the file ends before offset {}", offset));
  std::string bytes(end_of_pickle(source, offset) - offset, '\0');
  source.read(offset, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

}  // namespace perdure::format
