#include "format/ranks_json.hpp"

#include <fmt/format.h>

#include "format/checkpoint_json.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/json.hpp"

namespace perdure::format {
namespace {

constexpr std::size_t kMaxDepth = 16;

std::string ending_for(std::string_view front) {
  return fmt::format(",\"crc32\":\"{:08x}\"}}\n", crc32(as_bytes(front)));
}

[[noreturn]] void damaged(std::string_view what) {
  throw Error(ErrorCode::corrupt, fmt::format("{}: {}", kRanksName, what));
}

const Value& member(const Value& object, const char* name) {
  if (!object.is_mapping() || !object.contains(name))
    damaged(fmt::format("there is no \"{}\"", name));
  return object[name];
}

std::uint64_t number(const Value& object, const char* name) {
  const auto found = as_unsigned(member(object, name));
  if (!found) damaged(fmt::format("\"{}\" is no size", name));
  return *found;
}

}  // namespace

std::string write_ranks_json(const RanksRecord& record) {
  const Dict metadata{{"size", record.metadata_size}, {"crc32", record.metadata_crc32}};
  const Dict all{
      {"format_version", kFormatVersion},
      {"ranks", record.ranks},
      {"bytes", record.bytes},
      {"metadata", metadata},
      {"checkpoint", read_json(write_checkpoint_json(record.info), kRanksName, kMaxDepth)}};
  std::string text = write_json(Value(all));
  text.pop_back();
  return text + ending_for(text);
}

RanksRecord read_ranks_json(std::string_view text) {
  const std::size_t length = ending_for("").size();
  if (text.size() < length ||
      text.substr(text.size() - length) != ending_for(text.substr(0, text.size() - length)))
    damaged("it does not have the checksum that it was written with");
  const Value all = read_json(text, kRanksName, kMaxDepth);
  if (number(all, "format_version") > static_cast<std::uint64_t>(kFormatVersion))
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: format version {}, and this perdure knows {}; take a newer one",
                            kRanksName, number(all, "format_version"), kFormatVersion));
  RanksRecord record;
  record.info = read_checkpoint_json(write_json(member(all, "checkpoint")));
  record.ranks = number(all, "ranks");
  record.bytes = number(all, "bytes");
  const Value& metadata = member(all, "metadata");
  record.metadata_size = number(metadata, "size");
  const std::uint64_t sum = number(metadata, "crc32");
  if (record.ranks == 0 || sum > 0xFFFFFFFF) damaged("it contradicts itself");
  record.metadata_crc32 = static_cast<std::uint32_t>(sum);
  return record;
}

}  // namespace perdure::format
