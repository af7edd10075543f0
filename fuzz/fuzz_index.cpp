// Arbitrary bytes as .perdure/index: what is accepted says the same when it is written out again,
// and to a reader that counts on nothing.
#include <map>
#include <string>

#include "format/block_index.hpp"
#include "format/coding.hpp"
#include "require.hpp"

namespace {

using namespace perdure;
using format::put;

void put_key(std::string& out, const Value& key) {
  const bool is_text = key.kind() == Kind::string;
  const std::string text = is_text ? key.as_string() : std::to_string(key.as_int());
  put<std::uint8_t>(out, is_text ? 0 : 1);
  put<std::uint32_t>(out, static_cast<std::uint32_t>(text.size()));
  out += text;
}

void put_tensor(std::string& out, const format::IndexedTensor& tensor) {
  const Tensor& geometry = tensor.geometry;
  put<std::uint64_t>(out, static_cast<std::uint64_t>(tensor.record));
  put<std::uint8_t>(out, static_cast<std::uint8_t>(geometry.dtype));
  put<std::uint8_t>(out,
                    static_cast<std::uint8_t>(geometry.requires_grad | geometry.parameter << 1 |
                                              geometry.conj << 2 | geometry.neg << 3 | 1 << 4));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(tensor.path.size()));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(geometry.shape.size()));
  put<std::uint64_t>(out, static_cast<std::uint64_t>(geometry.storage_offset));
  for (const auto* numbers : {&geometry.shape, &geometry.strides})
    for (const std::int64_t x : *numbers) put<std::uint64_t>(out, static_cast<std::uint64_t>(x));
  for (const Value& key : tensor.path) put_key(out, key);
  put<std::uint32_t>(out, static_cast<std::uint32_t>(tensor.device.size()));
  out += tensor.device;
}

// Its keys as find_tensor compares them.
std::string name_of(const format::IndexedTensor& tensor) {
  std::string name;
  for (const Value& key : tensor.path) {
    if (!name.empty() || &key != &tensor.path.front()) name += '.';
    const bool is_text = key.kind() == Kind::string;
    name += !is_text                  ? std::to_string(key.as_int())
            : key.as_string().empty() ? "''"
                                      : key.as_string();
  }
  return name;
}

// A search for a name finds the one tensor that has it, or none where it could be several.
void check_search(const std::string& bytes, const format::BlockIndex& index) {
  std::map<std::string, int> names;
  for (const format::IndexedTensor& tensor : index.tensors) ++names[name_of(tensor)];
  for (const format::IndexedTensor& tensor : index.tensors) {
    const std::string name = name_of(tensor);
    const auto next = names.lower_bound(name + '.');
    const bool has_below = next != names.end() && next->first.starts_with(name + '.');
    try {
      const auto found = format::find_tensor(bytes, name);
      fuzz::require(found.has_value() == (names[name] == 1 && !has_below), "a search for a name");
      fuzz::require(!found || (found->storage->record == tensor.record &&
                               found->storage->device == tensor.device &&
                               found->shape == tensor.geometry.shape),
                    "another tensor than the name is of");
    } catch (const Error&) {  // reaches outside of its record, which read_index leaves to others
    }
    if (index.tensors.size() > 50) return;
  }
}

std::string written(const format::BlockIndex& index) {
  format::TensorLines lines{.count = index.tensors.size(), .bytes = {}};
  for (const format::IndexedTensor& tensor : index.tensors) put_tensor(lines.bytes, tensor);
  std::string out = format::write_index(index.storages, lines);
  format::put_at<std::uint32_t>(&out[12], static_cast<std::uint32_t>(index.block_size));
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes = perdure::fuzz::text_of(data, size);
  std::optional<format::BlockIndex> index;
  try {
    index = format::read_index(bytes);
  } catch (const Error&) {
    return 0;
  }
  // Other kinds of keys, spellings of ints and flags of the future are not kept: of what is written
  // out, everything is.
  const std::string once = written(*index);
  fuzz::require(written(format::read_index(once)) == once, "an index that does not stay the same");
  const std::size_t end_of_blocks = once.find(once.substr(0, 8)) + 32;
  fuzz::require(once.compare(0, end_of_blocks, bytes, 0, end_of_blocks) == 0, "another head");
  for (const format::IndexedTensor& tensor : index->tensors)
    fuzz::require(tensor.record < static_cast<std::int64_t>(index->storages.size()),
                  "a tensor in no storage");
  check_search(once, *index);
  return 0;
}
