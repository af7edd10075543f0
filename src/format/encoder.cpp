#include "format/encoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <unordered_set>

#include "format/checkpoint_json.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"

namespace perdure::format {

// The order of records: tensors first, so that their offsets depend on the structure of the state
// alone and not on an epoch number that grows a digit; the index next to last, because it holds
// their checksums. Nothing in here refers to the state: only TensorRecord::bytes do, to its memory.
struct Encoder::Plan {
  struct Text {
    std::string name;
    std::string content;
  };

  std::shared_ptr<const Layout> layout;
  std::vector<TensorRecord> tensors;
  std::vector<Text> texts;
  std::vector<ZipRecord> tail;  // of the texts and the index
  std::uint64_t file_size = 0;
  Extras extras;

  Plan(FittedLayout fitted, const CheckpointInfo& info, Extras wanted)
      : layout(std::move(fitted.layout)), tensors(std::move(fitted.tensors)), extras(wanted) {
    texts = {{"data.pkl", std::move(fitted.pickle)},
             {".format_version", "1"},
             {".storage_alignment", fmt::format("{}", kAlignment)},
             {"byteorder", "little"},
             {"version", "3\n"}};
    if (extras == Extras::perdure)
      texts.push_back({".perdure/checkpoint.json", write_checkpoint_json(info)});
    for (const Text& text : texts) append(text.name, text.content.size());
    if (extras == Extras::perdure)
      append(".perdure/index", index_size(layout->records, layout->lines));
    file_size = tail.back().end() + layout->directory_bytes + directory_entries_size(tail) +
                kDirectoryEndSize;
  }

  void append(std::string_view name, std::uint64_t size) {
    append_record(tail, fmt::format("{}/{}", kArchiveName, name), size, layout->end);
  }
};

namespace {

// Emits the bytes of a record block by block and sums them up.
StorageChecksums write_bytes(const BlockSink& sink, const TensorRecord& tensor) {
  const std::uint64_t size = tensor.bytes.size();
  StorageChecksums sums{.data_offset = tensor.data_offset, .size = size, .crc32 = 0, .blocks = {}};
  for_each_block(tensor, [&](ConstBytes block) {
    sums.add_block(crc32(block), block.size());
    sink(block);
  });
  return sums;
}

void append_text(std::string& out, std::string_view content, ZipRecord& record) {
  record.crc32 = crc32(as_bytes(content));
  out += local_header(record);
  out += content;
  out += data_descriptor(record);
}

}  // namespace

Encoder::Encoder(const Value& state, const CheckpointInfo& info, LayoutCache* cache, Extras extras)
    : plan_(std::make_unique<Plan>(cache ? cache->lay_out(state) : lay_out(state), info, extras)) {
  catch_up();
}
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

void FilePlan::catch_up() const {
  std::unordered_set<DeviceCopier*> copiers;
  for (const TensorRecord& tensor : tensors())
    if (tensor.copier != nullptr && copiers.insert(tensor.copier).second) tensor.copier->catch_up();
}

std::uint64_t Encoder::file_size() const { return plan_->file_size; }
std::span<const TensorRecord> Encoder::tensors() const { return plan_->tensors; }
std::uint64_t Encoder::tail_offset() const { return plan_->layout->end; }

std::string Encoder::header(std::size_t tensor) const {
  return local_header(plan_->layout->records[tensor]);
}

std::string Encoder::descriptor(std::size_t tensor, std::uint32_t crc32) const {
  ZipRecord record = plan_->layout->records[tensor];
  record.crc32 = crc32;
  return data_descriptor(record);
}

std::string Encoder::tail(const std::vector<StorageChecksums>& sums) const {
  std::vector<ZipRecord> records = plan_->layout->records;
  std::size_t next = 0;
  for (const StorageChecksums& sum : sums) records[next++].crc32 = sum.crc32;
  records.insert(records.end(), plan_->tail.begin(), plan_->tail.end());
  std::string out;
  out.reserve(file_size() - tail_offset());
  for (const Plan::Text& text : plan_->texts) append_text(out, text.content, records[next++]);
  if (plan_->extras == Extras::perdure)
    append_text(out, write_index(sums, plan_->layout->lines), records[next]);
  put_central_directory(out, records);
  return out;
}

std::string Encoder::tensor_name(std::size_t tensor, const Value& state) const {
  const StoragePlan plan(state);
  for (const PlannedTensor& planned : plan.tensors())
    if (planned.record == static_cast<std::int64_t>(tensor))
      return format_path(plan.path(planned.step));
  return "no tensor";
}

void Encoder::write(const std::function<void(ConstBytes)>& sink) const {
  std::vector<StorageChecksums> sums;
  for (std::size_t i = 0; i < tensors().size(); ++i) {
    sink(as_bytes(header(i)));
    sums.push_back(write_bytes(sink, tensors()[i]));
    sink(as_bytes(descriptor(i, sums.back().crc32)));
  }
  sink(as_bytes(tail(sums)));
}

}  // namespace perdure::format
