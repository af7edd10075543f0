#include "format/block_index.hpp"
#include "format/crc32.hpp"
#include "format/pickle_reader.hpp"
#include "format/zip_reader.hpp"
#include "io/fresh_memory.hpp"

namespace perdure {

std::optional<Tensor> find_tensor(const Source& source, std::string_view name) {
  try {
    const auto index = format::find_last_record(source, ".perdure/index");
    if (!index || index->size > format::kMaxPickle) return std::nullopt;
    const auto memory = io::allocate_fresh(index->size);
    const MutableBytes bytes(memory.get(), index->size);
    source.read(index->offset, bytes);
    if (format::crc32(bytes) != index->crc32) return std::nullopt;
    return format::find_tensor({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::io) throw;
    return std::nullopt;
  }
}

}  // namespace perdure
