#include "engine/rank_file.hpp"

#include <fmt/format.h>

#include "engine/arena.hpp"
#include "format/coding.hpp"
#include "format/encoder.hpp"

namespace perdure::engine {
namespace {

format::Encoder encoder_of(const Value& value) {
  return {value, CheckpointInfo(), nullptr, format::Extras::none};
}

std::uint64_t length_of(const RankItem& item) try {
  return item.raw ? item.value.as_string().size() : encoder_of(item.value).file_size();
} catch (const Error& error) {
  throw Error(error.code(), fmt::format("{}: {}", item.name, error.what()));
}

}  // namespace

std::vector<PlacedItem> place_items(const std::vector<RankItem>& items) {
  std::vector<PlacedItem> places;
  places.reserve(items.size());
  std::uint64_t offset = 0;
  for (const RankItem& item : items) {
    places.push_back({offset, length_of(item)});
    offset = format::aligned(offset + places.back().length);
  }
  return places;
}

std::uint64_t file_size(const std::vector<PlacedItem>& places) {
  return places.empty() ? 0 : format::aligned(places.back().offset + places.back().length);
}

void write_rank_file(storage::LocalStorage& folder, const std::string& name,
                     const std::vector<RankItem>& items, const std::vector<PlacedItem>& places,
                     std::uint64_t staging, const OnBytes& on_bytes) {
  const std::uint64_t size = file_size(places);
  Arena arena(staging, {});
  arena.reserve(size);
  const auto out = folder.create(name, size, storage::IfExists::fail);
  BlockWriter writer(*out, arena, on_bytes);
  for (const RankItem& item : items) {
    if (item.raw)
      writer.append(item.value.as_string());
    else
      encoder_of(item.value).write([&](ConstBytes bytes) { writer.append(bytes); });
    writer.pad_to(format::kAlignment);
  }
  writer.finish();
  out->commit();
}

void write_text(storage::LocalStorage& folder, const std::string& name, std::string_view text) {
  const auto out = folder.create(name, text.size(), storage::IfExists::fail);
  out->append(format::as_bytes(text));
  out->commit();
}

}  // namespace perdure::engine
