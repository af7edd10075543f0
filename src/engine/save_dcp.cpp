#include "engine/save_dcp.hpp"

#include <fmt/format.h>

#include "engine/changed_tensors.hpp"
#include "engine/flat_state.hpp"
#include "engine/rank_file.hpp"
#include "format/coding.hpp"
#include "format/dcp_writer.hpp"
#include "storage/new_directory.hpp"

namespace perdure::engine {
namespace {

constexpr std::uint64_t kStaging = std::uint64_t{32} << 20;
constexpr const char* kDataFile = "__0_0.distcp";

class DcpWriter {
 public:
  explicit DcpWriter(const Value& state) {
    metadata_.files = {kDataFile};
    for (FlatEntry& entry : flatten(state)) add(entry, state);
  }

  void write(storage::LocalStorage& files, const OnBytes& on_bytes) {
    const std::vector<PlacedItem> places = place_items(items_);
    for (std::size_t i = 0; i < places.size(); ++i)
      metadata_.items[i].chunks.push_back(
          {std::vector<std::int64_t>(metadata_.items[i].shape.size()),
           metadata_.items[i].shape,
           {0, places[i].offset, places[i].length}});
    write_rank_file(files, kDataFile, items_, places, kStaging, on_bytes);
    const std::string metadata = format::write_dcp_metadata(metadata_);
    const auto out = files.create(".metadata", metadata.size(), storage::IfExists::fail);
    out->append(format::as_bytes(metadata));
    out->commit();
  }

 private:
  void add(FlatEntry& entry, const Value& state) {
    format::DcpItem item;
    item.name = entry.name;
    item.path = dcp_path(entry.path, state);
    if (entry.value.kind() == Kind::tensor) {
      Tensor tensor = in_c_order(entry.value.as_tensor());
      check(tensor, entry);
      item.is_tensor = true;
      item.dtype = tensor.dtype;
      item.shape = tensor.shape;
      tensor.parameter = tensor.requires_grad = false;  // as dcp.save detaches them
      entry.value = Value(std::move(tensor));
    }
    items_.push_back({format_path(entry.path), std::move(entry.value)});
    metadata_.items.push_back(std::move(item));
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
  std::vector<RankItem> items_;
  format::DcpMetadata metadata_;
};

}  // namespace

void save_dcp(io::System& system, const std::filesystem::path& path, const Value& state,
              storage::IfExists if_exists, const OnBytes& on_bytes) {
  DcpWriter writer(state);
  storage::NewDirectory directory(system, path, if_exists);
  writer.write(directory.files(), on_bytes);
  directory.commit();
}

}  // namespace perdure::engine
