#include "engine/save_dcp.hpp"

#include <fmt/format.h>

#include "engine/changed_tensors.hpp"
#include "engine/flat_state.hpp"
#include "format/coding.hpp"
#include "format/dcp_writer.hpp"
#include "format/encoder.hpp"
#include "storage/new_directory.hpp"

namespace perdure::engine {
namespace {

constexpr std::uint64_t kArena = std::uint64_t{32} << 20;
constexpr const char* kDataFile = "__0_0.distcp";

// What torch.save would write of it.
format::Encoder encoder_of(const Value& value) {
  return {value, CheckpointInfo(), nullptr, format::Extras::none};
}

// A dict's key is a string, a list's position an int: that is how dcp.load tells them.
KeyPath dcp_path(const FlatEntry& entry, const Value& state) {
  KeyPath path;
  const Value* at = &state;
  for (const Value& key : entry.path) {
    if (at->is_mapping()) {
      path.push_back(key.kind() == Kind::string ? key : Value(repr(key, 1000)));
      at = at->as_dict().find(key);
    } else {
      path.push_back(key);
      at = &at->as_items()[static_cast<std::size_t>(key.as_int())];
    }
  }
  return path;
}

class DcpWriter {
 public:
  explicit DcpWriter(const Value& state) : entries_(flatten(state)) {
    metadata_.files = {kDataFile};
    for (FlatEntry& entry : entries_) add(entry, state);
  }

  void write(storage::LocalStorage& files, const OnBytes& on_bytes) const {
    Arena arena(kArena, {});
    arena.reserve(size_);
    write_data(files, arena, on_bytes);
    const std::string metadata = format::write_dcp_metadata(metadata_);
    const auto out = files.create(".metadata", metadata.size(), storage::IfExists::fail);
    out->append(format::as_bytes(metadata));
    out->commit();
  }

 private:
  void add(FlatEntry& entry, const Value& state) {
    format::DcpItem item;
    item.name = entry.name;
    item.path = dcp_path(entry, state);
    if (entry.value.kind() == Kind::tensor) {
      Tensor tensor = in_c_order(entry.value.as_tensor());
      check(tensor, entry);
      item.is_tensor = true;
      item.dtype = tensor.dtype;
      item.shape = tensor.shape;
      tensor.parameter = tensor.requires_grad = false;  // as dcp.save detaches them
      entry.value = Value(std::move(tensor));
    }
    const std::uint64_t length = size_of(entry);
    item.chunks.push_back({{}, {}, {0, size_, length}});
    size_ += (length + format::kAlignment - 1) / format::kAlignment * format::kAlignment;
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
  static std::uint64_t size_of(const FlatEntry& entry) try {
    return encoder_of(entry.value).file_size();
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", format_path(entry.path), error.what()));
  }

  void write_data(storage::LocalStorage& files, Arena& arena, const OnBytes& on_bytes) const {
    const auto out = files.create(kDataFile, size_, storage::IfExists::fail);
    BlockWriter writer(*out, arena, on_bytes);
    for (const FlatEntry& entry : entries_) {
      encoder_of(entry.value).write([&](ConstBytes bytes) { writer.append(bytes); });
      writer.pad_to(format::kAlignment);
    }
    writer.finish();
    out->commit();
  }

  std::vector<FlatEntry> entries_;
  format::DcpMetadata metadata_;
  std::uint64_t size_ = 0;
};

}  // namespace

void save_dcp(io::System& system, const std::filesystem::path& path, const Value& state,
              storage::IfExists if_exists, const OnBytes& on_bytes) {
  const DcpWriter writer(state);
  storage::NewDirectory directory(system, path, if_exists);
  writer.write(directory.files(), on_bytes);
  directory.commit();
}

}  // namespace perdure::engine
