// Arbitrary bytes as an index of safetensors files: no name of a file leaves its folder, and what
// is accepted says the same when it is written out again.
#include "format/safetensors.hpp"
#include "require.hpp"

namespace {

using namespace perdure;

std::optional<format::SafetensorsIndex> read(std::string_view text) {
  try {
    return format::parse_safetensors_index(text);
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::invalid,
                  std::string("another error: ") + error.what());
    fuzz::require(std::string_view(error.what()).size() < 1000, "an error of the file's own words");
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto index = read(fuzz::text_of(data, size));
  if (!index) return 0;
  for (const std::string& file : index->files)
    fuzz::require(file.find('/') == file.npos && file != "..", "a file that is elsewhere");
  const auto again = read(format::write_safetensors_index(*index, 0));
  fuzz::require(again && again->places.size() == index->places.size(), "it does not stay the same");
  return 0;
}
