// Arbitrary bytes as a safetensors file: what is accepted has no tensor outside of the file, and
// says the same when it is laid out again.
#include "format/memory_source.hpp"
#include "format/safetensors.hpp"
#include "require.hpp"

namespace {

using namespace perdure;

std::optional<format::Safetensors> read(const Source& source) {
  try {
    return format::read_safetensors(source);
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported,
                  std::string("another error: ") + error.what());
    fuzz::require(std::string_view(error.what()).size() < 1000, "an error of the file's own words");
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = read(test::MemorySource(std::string(fuzz::text_of(data, size)), "x"));
  if (!file) return 0;
  std::uint64_t end = file->data_begin;
  for (const format::SafetensorsEntry& tensor : file->tensors) {
    fuzz::require(file->data_begin + tensor.offset == end, "bytes that are nobody's");
    end += tensor.size;
  }
  fuzz::require(end == size, "bytes outside of the file");
  std::vector<format::SafetensorsEntry> tensors = file->tensors;
  const std::string begin = format::lay_out_safetensors(tensors, file->metadata);
  const auto again =
      read(test::MemorySource(begin + std::string(size - file->data_begin, '\0'), "again"));
  fuzz::require(
      again && again->metadata == file->metadata && again->tensors.size() == file->tensors.size(),
      "it does not stay the same");
  return 0;
}
