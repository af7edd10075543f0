#include "format/safetensors_file.hpp"

namespace perdure::format {

Contents read_safetensors_file(const Source& source) {
  Safetensors file = read_safetensors(source);
  Contents contents;
  contents.format = "safetensors";
  Dict value;
  with_file_name(source, [&] { add_safetensors(file, 0, contents, value); });
  contents.value = Value(std::move(value));
  contents.metadata = std::move(file.metadata);
  return contents;
}

void add_safetensors(const Safetensors& file, std::uint64_t begin, Contents& contents,
                     Dict& value) {
  for (const SafetensorsEntry& entry : file.tensors) {
    Tensor tensor = contiguous_tensor(entry.dtype, entry.shape);
    tensor.storage = contents.add_storage({.name = entry.name,
                                           .offset = begin + file.data_begin + entry.offset,
                                           .size = entry.size,
                                           .crc32 = 0});
    value.set(entry.name, std::move(tensor));
  }
}

// Strides as PyTorch has them, where a size of 0 counts as 1.
Tensor contiguous_tensor(DType dtype, std::vector<std::int64_t> shape) {
  Tensor tensor;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.strides.resize(tensor.shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    tensor.strides[i] = stride;
    if (__builtin_mul_overflow(stride, std::max<std::int64_t>(tensor.shape[i], 1), &stride))
      throw Error(ErrorCode::corrupt, "a shape of more elements than there can be");
  }
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(stride, static_cast<std::int64_t>(itemsize(dtype)), &bytes))
    throw Error(ErrorCode::corrupt, "a shape of more bytes than there can be");
  return tensor;
}

}  // namespace perdure::format
