#include "format/encoder.hpp"

#include <fmt/format.h>

#include "format/archive_layout.hpp"
#include "format/block_index.hpp"
#include "format/checkpoint_json.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/pickle_writer.hpp"

namespace perdure::format {

// The order of records: tensors first, so that their offsets depend on the structure of the state
// alone and not on an epoch number that grows a digit; the index next to last, because it holds
// their checksums.
struct Encoder::Plan {
  struct Text {
    std::string name;
    std::string content;
  };

  StoragePlan storages;
  std::vector<Text> texts;
  std::vector<ZipRecord> records;  // storages, texts, index
  std::uint64_t file_size = 0;

  Plan(const Value& state, const CheckpointInfo& info) : storages(state) {
    texts = {{"data.pkl", write_pickle(state, storages)},
             {".format_version", "1"},
             {".storage_alignment", fmt::format("{}", kAlignment)},
             {"byteorder", "little"},
             {"version", "3\n"},
             {".perdure/checkpoint.json", write_checkpoint_json(info)}};
    for (std::size_t i = 0; i < storages.records().size(); ++i)
      append(fmt::format("data/{}", i), storages.records()[i].size);
    for (const Text& text : texts) append(text.name, text.content.size());
    append(".perdure/index", index_size(storages));
    file_size = records.back().end() + central_directory(records).size();
  }

  void append(std::string_view name, std::uint64_t size) {
    append_record(records, fmt::format("{}/{}", kArchiveName, name), size);
  }
};

namespace {

using Sink = std::function<void(ConstBytes)>;

StorageChecksums write_storage(const Sink& sink, const StorageRecord& storage,
                               const ZipRecord& record) {
  StorageChecksums sums{
      .data_offset = record.data_offset, .size = record.size, .crc32 = 0, .blocks = {}};
  sink(as_bytes(local_header(record)));
  for (std::uint64_t at = 0; at < storage.size; at += kBlockSize) {
    const std::uint64_t size = std::min(kBlockSize, storage.size - at);
    const ConstBytes block(storage.storage->data + storage.begin + at, size);
    const std::uint32_t crc = crc32(block);
    sums.blocks.push_back(crc);
    sums.crc32 = crc32_combine(sums.crc32, crc, size);
    sink(block);
  }
  return sums;
}

void write_text(const Sink& sink, std::string_view content, ZipRecord& record) {
  record.crc32 = crc32(as_bytes(content));
  sink(as_bytes(local_header(record)));
  sink(as_bytes(content));
  sink(as_bytes(data_descriptor(record)));
}

}  // namespace

Encoder::Encoder(const Value& state, const CheckpointInfo& info)
    : plan_(std::make_unique<Plan>(state, info)) {}
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

std::uint64_t Encoder::file_size() const { return plan_->file_size; }

void Encoder::write(const std::function<void(ConstBytes)>& sink) const {
  std::vector<ZipRecord> records = plan_->records;
  std::vector<StorageChecksums> sums;
  std::size_t next = 0;
  for (const StorageRecord& storage : plan_->storages.records()) {
    ZipRecord& record = records[next++];
    sums.push_back(write_storage(sink, storage, record));
    record.crc32 = sums.back().crc32;
    sink(as_bytes(data_descriptor(record)));
  }
  for (const Plan::Text& text : plan_->texts) write_text(sink, text.content, records[next++]);
  write_text(sink, write_index(sums, plan_->storages), records[next]);
  sink(as_bytes(central_directory(records)));
}

}  // namespace perdure::format
