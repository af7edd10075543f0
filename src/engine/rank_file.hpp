// What one process writes of a directory of torch.distributed.checkpoint (DCP): a file with items
// end to end.
#pragma once

#include <cstdint>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/block_writer.hpp"
#include "storage/local_storage.hpp"

namespace perdure::engine {

// A value, which becomes what torch.save would write of it, with a checksum; or bytes that are that
// already.
struct RankItem {
  std::string name;  // for errors
  Value value;
  bool raw = false;  // value is bytes
};

struct PlacedItem {
  std::uint64_t offset = 0;  // a multiple of format::kAlignment
  std::uint64_t length = 0;
};

// Where each will be, and how long the file is then. Error(invalid) for what torch.load could not
// take.
std::vector<PlacedItem> place_items(const std::vector<RankItem>& items);
std::uint64_t file_size(const std::vector<PlacedItem>& places);

// Writes them, so that they are durable when it returns. `staging`: bytes of memory to write
// through.
void write_rank_file(storage::LocalStorage& folder, const std::string& name,
                     const std::vector<RankItem>& items, const std::vector<PlacedItem>& places,
                     std::uint64_t staging, const OnBytes& on_bytes = {});

// The same of a small file beside it.
void write_text(storage::LocalStorage& folder, const std::string& name, std::string_view text);

}  // namespace perdure::engine
