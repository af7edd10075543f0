// safetensors: eight bytes with the length of a header, little-endian; the header, a JSON object of
// dtype, shape and place of every tensor; the bytes of the tensors, without holes. No checksums.
//
//   {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::format {

// Bytes of the header, as in the library of the format.
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;
// What their names, shapes and records take in memory stays under a GiB.
inline constexpr std::size_t kMaxSafetensors = std::size_t{1} << 20;

// `__metadata__`, which is all that a file says beside its tensors.
using TextMap = std::map<std::string, std::string>;

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // of its bytes, from the end of the header
  std::uint64_t size = 0;
};

struct Safetensors {
  std::vector<SafetensorsEntry> tensors;  // in the order of their bytes
  TextMap metadata;
  std::uint64_t data_begin = 0;  // offset in the file of the first tensor's bytes
};

// Whether a file that begins so (16 bytes are enough) is meant to be one; it may be cut or damaged.
bool is_safetensors(std::string_view head) noexcept;

// Error(corrupt) where the header contradicts itself or the file: everything that the format
// forbids, and what it leaves open but readers take in two ways (a name that stands there twice).
// Error(unsupported) for dtypes that PyTorch has not, and for more than kMaxSafetensors.
Safetensors read_safetensors(const Source& source);
// The same of the header alone, without file name. `data_size`: bytes of the file behind it.
Safetensors parse_safetensors_header(std::string_view header, std::uint64_t data_size);

// The name of a dtype in the format; "" for those that it has not.
std::string_view safetensors_dtype(DType dtype) noexcept;
// Orders the tensors as the library of the format does (by dtype, the widest first, then by name),
// gives each its offset, and makes what stands in front of their bytes: length and header, padded
// to eight bytes. All dtypes must have a name.
std::string lay_out_safetensors(std::vector<SafetensorsEntry>& tensors, const TextMap& metadata);

// model.safetensors.index.json: which file of a folder has which tensor.
struct SafetensorsIndex {
  std::vector<std::string> files;             // each once, in the order of first mention
  std::map<std::string, std::size_t> places;  // of a tensor: the number of its file
  TextMap metadata;  // `metadata` without total_size; what is no string stands there as JSON
};

bool is_safetensors_index(std::string_view head) noexcept;
// Error(corrupt) for other forms; Error(invalid) for files that are named by more than a name, and
// so could be outside of the folder.
SafetensorsIndex parse_safetensors_index(std::string_view text);
std::string write_safetensors_index(const SafetensorsIndex& index, std::uint64_t total_size);

}  // namespace perdure::format
