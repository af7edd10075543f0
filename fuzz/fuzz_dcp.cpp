// Arbitrary bytes as .metadata of a DCP directory: what is accepted names no file outside of it,
// and its chunks cover its tensors.
#include "format/dcp_metadata.hpp"
#include "require.hpp"

namespace {

using namespace perdure;

void check(const format::DcpMetadata& metadata, const format::DcpItem& item) {
  std::uint64_t covered = 0;
  for (const format::DcpChunk& chunk : item.chunks) {
    fuzz::require(chunk.place.file < metadata.files.size(), "a chunk in no file");
    std::uint64_t elements = 1;
    for (const std::int64_t size : chunk.sizes) elements *= static_cast<std::uint64_t>(size);
    covered += elements;
  }
  std::uint64_t wanted = 1;
  for (const std::int64_t size : item.shape) wanted *= static_cast<std::uint64_t>(size);
  fuzz::require(!item.is_tensor || covered == wanted, "a tensor that is not covered");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const format::DcpMetadata metadata = format::read_dcp_metadata(fuzz::text_of(data, size));
    for (const std::string& file : metadata.files)
      fuzz::require(!file.empty() && file[0] != '/' && file.find("..") != 0, "a file elsewhere");
    for (const format::DcpItem& item : metadata.items) check(metadata, item);
    format::join_dcp_state(metadata.items, std::vector<Value>(metadata.items.size()));
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported ||
                      error.code() == ErrorCode::invalid,
                  std::string("another error: ") + error.what());
  }
  return 0;
}
