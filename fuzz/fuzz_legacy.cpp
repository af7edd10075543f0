// Arbitrary bytes behind the head of a legacy file: only perdure::Error may come out, verify sees
// what load calls damage, and whatever is loaded survives a save.
#include "saved_again.hpp"

namespace {

using namespace perdure;
using namespace std::literals;

// The magic number and the version; what machine it was is the input's.
constexpr auto kHead =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."sv;

std::optional<CheckpointFile> opened(const std::string& bytes, bool allow_opaque, bool& damaged) {
  try {
    auto file = CheckpointFile::open(test::source_of(bytes), allow_opaque);
    file.read_all(file.value());
    return file;
  } catch (const Error& error) {
    damaged = damaged || error.code() == ErrorCode::corrupt;
    return std::nullopt;
  }
}

VerifyReport::State verified(const std::string& bytes) {
  try {
    return verify(test::source_of(bytes)).state;
  } catch (const Error& error) {
    fuzz::require(error.code() != ErrorCode::corrupt,
                  std::string("verify throws for damage: ") + error.what());
    return VerifyReport::State::damaged;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes = std::string(kHead) + std::string(perdure::fuzz::text_of(data, size));
  bool damaged = false;
  const auto shown = opened(bytes, true, damaged);
  const auto plain = opened(bytes, false, damaged);
  perdure::fuzz::require(shown || !plain, "plain data that cannot be shown");
  const auto state = verified(bytes);
  perdure::fuzz::require(!damaged || state == VerifyReport::State::damaged,
                         "verify does not see what load calls damage");
  perdure::fuzz::require(state != VerifyReport::State::good, "there is nothing to compare with");
  if (plain) perdure::fuzz::check_saved_again(plain->value());
  return 0;
}
