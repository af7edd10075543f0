// .metadata of a directory of torch.distributed.checkpoint (DCP): a pickle that says what is in
// the checkpoint, and which bytes of which file hold each piece of it. Read as data: no class of
// it is ever made.
//
//   Metadata{state_dict_metadata: {name: TensorStorageMetadata{properties, size, chunks: [...]}
//                                      | BytesStorageMetadata},
//            planner_data: {name: path of keys}, storage_data: {MetadataIndex: _StorageInfo}, ...}
#pragma once

#include <cstdint>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::format {

// What a hostile .metadata may ask for. A tensor that is spread over 4096 ranks has as many chunks.
inline constexpr std::size_t kMaxDcpChunks = std::size_t{1} << 21;
inline constexpr std::size_t kMaxDcpChunksOfOne = std::size_t{1} << 14;

// A run of bytes that was written by torch.save.
struct DcpPlace {
  std::size_t file = 0;  // in DcpMetadata::files
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

// A box of a tensor.
struct DcpChunk {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> sizes;
  DcpPlace place;
};

struct DcpItem {
  std::string name;
  KeyPath path;  // in the state; the name alone, where the metadata knows none
  bool is_tensor = false;
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  // Of a tensor: without empty ones, disjoint, and together all of it; each once. Of anything else:
  // one, of which only the place counts.
  std::vector<DcpChunk> chunks;
};

struct DcpMetadata {
  std::vector<std::string> files;  // relative to the directory, and never outside of it
  std::vector<DcpItem> items;
};

// Error(corrupt) where it is no such pickle, or contradicts itself: chunks that overlap, are
// missing, lie outside of their tensor or nowhere; Error(invalid) for files outside of the
// directory; Error(unsupported) for streams that were transformed (compressed), and dtypes that
// perdure does not know.
DcpMetadata read_dcp_metadata(std::string_view pickle);

// The state that the items are parts of; `values` has one for each. Error(corrupt) where two are at
// one place, or one below another.
Value join_dcp_state(const std::vector<DcpItem>& items, const std::vector<Value>& values);

}  // namespace perdure::format
