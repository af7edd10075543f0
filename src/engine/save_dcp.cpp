#include "engine/save_dcp.hpp"

#include <fmt/format.h>

#include <map>
#include <tuple>
#include <unordered_set>

#include "engine/changed_tensors.hpp"
#include "engine/flat_state.hpp"
#include "engine/rank_file.hpp"
#include "engine/rank_plan.hpp"
#include "engine/rank_view.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/dcp_writer.hpp"
#include "format/ranks_json.hpp"
#include "storage/new_directory.hpp"

namespace perdure::engine {
namespace {

constexpr std::uint64_t kStaging = std::uint64_t{32} << 20;
constexpr const char* kDataFile = "__0_0.distcp";

class DcpWriter {
 public:
  DcpWriter(const Value& state, const std::optional<CheckpointInfo>& info) : info_(info) {
    metadata_.files = {kDataFile};
    const Value shared = info && info->ranks > 1 ? without_ranks(state) : state;
    for (FlatEntry& entry : flatten(shared)) add(entry, shared);
    if (!info) return;
    const auto is_shared = [this](const std::string& name) { return tensors_.contains(name); };
    add_record(0, without_shared(shared, is_shared, Traits::keep));
    for (std::size_t rank = 1; rank < info->ranks; ++rank)
      add_record(rank, state[kRanksKey][std::to_string(rank)]);
  }

  void write(storage::LocalStorage& files, const OnBytes& on_bytes) {
    const std::vector<PlacedItem> places = place_items(items_);
    for (std::size_t i = 0; i < metadata_.items.size(); ++i) {
      const PlacedItem& place = places[item_of_[i]];
      metadata_.items[i].chunks.push_back(
          {std::vector<std::int64_t>(metadata_.items[i].shape.size()),
           metadata_.items[i].shape,
           {0, place.offset, place.length}});
    }
    write_rank_file(files, kDataFile, items_, places, kStaging, on_bytes);
    const std::string metadata = format::write_dcp_metadata(metadata_);
    write_text(files, ".metadata", metadata);
    if (info_) write_text(files, format::kRanksName, ranks_json(file_size(places), metadata));
  }

 private:
  void add(FlatEntry& entry, const Value& state) {
    format::DcpItem item;
    item.name = entry.name;
    item.path = dcp_path(entry.path, state);
    item_of_.push_back(items_.size());
    if (entry.value.kind() == Kind::tensor && holds(entry)) {
      const Tensor& tensor = entry.value.as_tensor();
      item.is_tensor = true;
      item.dtype = tensor.dtype;
      item.shape = tensor.shape;
      if (info_) item_of_.back() = first_item_of(tensor);
      tensors_.insert(entry.name);
    }
    if (item_of_.back() == items_.size())
      items_.push_back({format_path(entry.path),
                        item.is_tensor ? plain(entry.value.as_tensor()) : std::move(entry.value)});
    metadata_.items.push_back(std::move(item));
  }
  // Tied tensors are one item to perdure.
  std::size_t first_item_of(const Tensor& tensor) {
    return written_
        .try_emplace({tensor.storage.get(), tensor.dtype, tensor.storage_offset, tensor.shape,
                      tensor.strides},
                     items_.size())
        .first->second;
  }
  static Value plain(const Tensor& tensor) {
    Tensor out = in_c_order(tensor);
    out.parameter = out.requires_grad = false;  // as dcp.save detaches them
    return Value(std::move(out));
  }
  void add_record(std::size_t rank, const Value& record) {
    const std::string name = record_name(rank);
    item_of_.push_back(items_.size());
    items_.push_back({name, record});
    metadata_.items.push_back({.name = name,
                               .path = {Value(kRanksKey), Value(std::to_string(rank))},
                               .is_tensor = false,
                               .dtype = DType::float32,
                               .shape = {},
                               .chunks = {}});
  }
  std::string ranks_json(std::uint64_t bytes, const std::string& metadata) const {
    format::RanksRecord record{.info = *info_,
                               .ranks = info_->ranks,
                               .bytes = bytes + metadata.size(),
                               .metadata_size = metadata.size(),
                               .metadata_crc32 = format::crc32(format::as_bytes(metadata))};
    record.info.ranks = 1;  // perdure.json says it elsewhere
    return format::write_ranks_json(record);
  }
  // Whether an item that is a tensor can hold it. To perdure, it stands in the record then.
  bool holds(const FlatEntry& entry) const {
    const Tensor& tensor = entry.value.as_tensor();
    if (!info_) check(tensor, entry);
    return tensor.storage->device != "meta" && !tensor.conj && !tensor.neg;
  }
  static void check(const Tensor& tensor, const FlatEntry& entry) {
    if (tensor.storage->device == "meta")
      throw Error(ErrorCode::invalid,
                  fmt::format("{} is on the meta device, so it has no values that a DCP directory "
                              "could hold",
                              format_path(entry.path)));
    if (tensor.conj || tensor.neg)
      throw Error(ErrorCode::invalid,
                  fmt::format("{} is conjugated or negated lazily, which a DCP directory cannot "
                              "hold; resolve it first (x.resolve_conj().resolve_neg())",
                              format_path(entry.path)));
  }

  const std::optional<CheckpointInfo>& info_;
  std::vector<RankItem> items_;
  format::DcpMetadata metadata_;
  std::vector<std::size_t> item_of_;  // in items_, of each in metadata_.items
  std::unordered_set<std::string> tensors_;
  std::map<std::tuple<const TensorStorage*, DType, std::int64_t, std::vector<std::int64_t>,
                      std::vector<std::int64_t>>,
           std::size_t>
      written_;
};

}  // namespace

void save_dcp(io::System& system, const std::filesystem::path& path, const Value& state,
              const std::optional<CheckpointInfo>& info, storage::IfExists if_exists,
              const OnBytes& on_bytes) {
  DcpWriter writer(state, info);
  storage::NewDirectory directory(system, path, if_exists);
  writer.write(directory.files(), on_bytes);
  directory.commit();
}

}  // namespace perdure::engine
