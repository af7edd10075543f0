#include "engine/rank_plan.hpp"

#include <fmt/format.h>

#include <map>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "engine/flat_state.hpp"
#include "engine/rank_view.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::engine {
namespace {

// Below it, a part of a tensor costs more than it brings: an item of its own has a few KB around
// it.
constexpr std::uint64_t kWorthAPart = std::uint64_t{1} << 20;

std::uint64_t bytes_in(const std::vector<std::int64_t>& sizes, DType dtype) {
  std::uint64_t bytes = itemsize(dtype);
  for (const std::int64_t size : sizes) bytes *= static_cast<std::uint64_t>(size);
  return bytes;
}

bool is_contiguous(const Tensor& tensor) {
  return tensor.strides == format::contiguous_tensor(tensor.dtype, tensor.shape).strides;
}

// Whether a reader that knows dtype, shape and bytes alone gets it back.
bool is_plain(const Tensor& tensor) {
  return tensor.storage->device != "meta" && !tensor.conj && !tensor.neg;
}

std::string encoded(const Value& value) {
  std::string bytes;
  format::Encoder(value, CheckpointInfo(), nullptr, format::Extras::none)
      .write([&](ConstBytes piece) {
        bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      });
  return bytes;
}

}  // namespace

std::string record_name(std::size_t rank) { return fmt::format("{}.{}", kRanksKey, rank); }

// One tensor as torch.save writes it: everything but its bytes.
struct RankPlan::Item {
  DType dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  std::string device;
  format::Encoder encoder;

  explicit Item(const Tensor& tensor)
      : dtype(tensor.dtype),
        shape(tensor.shape),
        strides(tensor.strides),
        device(tensor.storage->device),
        encoder(Value(tensor), CheckpointInfo(), nullptr, format::Extras::none) {}
  bool fits(const Tensor& tensor) const {
    return dtype == tensor.dtype && shape == tensor.shape && strides == tensor.strides &&
           device == tensor.storage->device;
  }
};

class RankPlan::Builder {
 public:
  Builder(RankPlan& plan, const Value& state, const RankRoles& roles, const Items* last)
      : plan_(plan), state_(state), roles_(roles), last_(last) {
    for (const Shard& shard : roles.shards) shards_.emplace(flat_name(shard.path), &shard);
  }

  void build() {
    if (!state_.is_mapping() || state_.kind() == Kind::composite)
      throw Error(ErrorCode::invalid, fmt::format("the state of a rank is a {}; a dict is wanted",
                                                  kind_name(state_.kind())));
    if (state_.contains(kRanksKey))
      throw Error(ErrorCode::invalid,
                  fmt::format("the name '{}' is one of perdure's own in a checkpoint of several "
                              "ranks; take another name",
                              kRanksKey));
    std::vector<const FlatEntry*> values;
    const std::vector<FlatEntry> entries = flatten(state_);
    for (const FlatEntry& entry : entries)
      if (!take_tensor(entry)) values.push_back(&entry);
    plan_.tail_offset_ = end_;
    if (roles_.rank == 0)
      for (const FlatEntry* entry : values)
        add_value(entry->name, dcp_path(entry->path, state_), entry->value);
    const auto is_shared = [this](const std::string& name) { return shared_names_.contains(name); };
    add_value(record_name(roles_.rank), {Value(kRanksKey), Value(std::to_string(roles_.rank))},
              without_shared(state_, is_shared, Traits::leave_out));
  }

 private:
  using View =
      std::tuple<const std::byte*, DType, std::vector<std::int64_t>, std::vector<std::int64_t>>;
  static View view_of(const Tensor& tensor) {
    return {tensor.storage->data + tensor.byte_range().first, tensor.dtype, tensor.shape,
            tensor.strides};
  }

  // False where it is a value of this rank's own.
  bool take_tensor(const FlatEntry& entry) {
    if (entry.value.kind() != Kind::tensor) return false;
    Tensor tensor = entry.value.as_tensor();
    tensor.parameter = tensor.requires_grad = false;  // as dcp.save detaches them
    const auto shard = shards_.find(entry.name);
    if (shard != shards_.end()) {
      add_shard(entry, tensor, *shard->second);
      return true;
    }
    if (!is_shared(entry.path) || !is_plain(tensor)) return false;
    add_name(entry, tensor.dtype, tensor.shape);
    const std::vector<std::int64_t> offsets(tensor.shape.size());
    if (tensor.liveness == Liveness::stepped)
      share_out(entry.name, tensor, tensor.shape, offsets, roles_.rank, roles_.ranks);
    else if (roles_.rank == 0)
      add_piece(entry.name, std::move(tensor), entry.value.as_tensor().shape, offsets);
    return true;
  }

  bool is_shared(const KeyPath& path) const {
    return path[0].kind() == Kind::string && roles_.shared.contains(path[0].as_string());
  }

  void add_shard(const FlatEntry& entry, const Tensor& tensor, const Shard& shard) {
    if (!is_plain(tensor))
      throw Error(ErrorCode::invalid,
                  fmt::format("{} is on the meta device, or conjugated or negated lazily, which a "
                              "checkpoint of several ranks cannot hold; resolve it first",
                              format_path(entry.path)));
    if (tensor.shape != shard.sizes)
      throw Error(ErrorCode::invalid,
                  fmt::format("{} has {} here, and should be a box of {}", format_path(entry.path),
                              repr(Value::size(tensor.shape)), repr(Value::size(shard.sizes))));
    add_name(entry, tensor.dtype, shard.shape);
    if (tensor.numel() == 0 && bytes_in(shard.shape, tensor.dtype) > 0) return;
    share_out(entry.name, tensor, shard.shape, shard.offsets, shard.replica, shard.replicas);
  }

  void add_name(const FlatEntry& entry, DType dtype, const std::vector<std::int64_t>& shape) {
    plan_.named_.push_back({entry.name, dcp_path(entry.path, state_), dtype, shape});
    shared_names_.insert(entry.name);
  }

  // This rank's part of what `replicas` ranks have.
  void share_out(const std::string& name, const Tensor& tensor,
                 const std::vector<std::int64_t>& shape, std::vector<std::int64_t> offsets,
                 std::size_t replica, std::size_t replicas) {
    const std::uint64_t bytes = bytes_in(tensor.shape, tensor.dtype);
    const auto rows = tensor.shape.empty() ? 0 : static_cast<std::uint64_t>(tensor.shape[0]);
    if (replicas == 1) return add_piece(name, tensor, shape, std::move(offsets));
    if (bytes < kWorthAPart * replicas || rows < replicas || !is_contiguous(tensor)) {
      if (format::crc32(format::as_bytes(first_name(name, tensor))) % replicas == replica)
        add_piece(name, tensor, shape, std::move(offsets));
      return;
    }
    const auto first = static_cast<std::int64_t>(rows * replica / replicas);
    const auto last = static_cast<std::int64_t>(rows * (replica + 1) / replicas);
    Tensor part = tensor;
    part.shape[0] = last - first;
    part.storage_offset += first * part.strides[0];
    offsets[0] += first;
    add_piece(name, std::move(part), shape, std::move(offsets));
  }

  // Of those that are the same view of the same memory, and so by the same rank. Which these are,
  // is the same on all ranks.
  const std::string& first_name(const std::string& name, const Tensor& tensor) {
    const auto [begin, end] = tensor.byte_range();
    if (begin == end) return name;
    return names_.try_emplace(view_of(tensor), name).first->second;
  }

  // Tensors that are the same view of the same memory are written once.
  void add_piece(const std::string& name, Tensor tensor, const std::vector<std::int64_t>& shape,
                 std::vector<std::int64_t> offsets) {
    RankPiece piece{name, tensor.dtype, shape, std::move(offsets), tensor.shape, {}};
    const auto [begin, end] = tensor.byte_range();
    const std::byte* data = begin == end ? nullptr : tensor.storage->data + begin;
    if (data != nullptr) {
      const auto known = written_.try_emplace(view_of(tensor), pieces().size());
      if (!known.second) {
        piece.place = pieces()[known.first->second].place;
        pieces().push_back(std::move(piece));
        return;
      }
    }
    const std::shared_ptr<const Item> item = item_for(tensor);
    const format::Encoder& encoder = item->encoder;
    if (encoder.tensors().size() != 1 || encoder.tensors()[0].bytes.size() != end - begin)
      throw Error(ErrorCode::invalid, fmt::format("{}: is no tensor with bytes", name));
    const format::TensorRecord& planned = encoder.tensors()[0];
    piece.place = {end_, encoder.file_size()};
    plan_.records_.push_back({.bytes = {data, end - begin},
                              .copier = tensor.storage->copier.get(),
                              .header_offset = end_ + planned.header_offset,
                              .data_offset = end_ + planned.data_offset,
                              .end = format::aligned(end_ + encoder.file_size()),
                              .liveness = tensor.liveness});
    end_ = plan_.records_.back().end;
    plan_.items_.push_back(item);
    plan_.record_names_.push_back(name);
    pieces().push_back(std::move(piece));
  }

  std::vector<RankPiece>& pieces() { return plan_.pieces_; }

  std::shared_ptr<const Item> item_for(const Tensor& tensor) {
    const std::size_t number = plan_.items_.size();
    if (last_ != nullptr && number < last_->size() && (*last_)[number]->fits(tensor))
      return (*last_)[number];
    return std::make_shared<const Item>(tensor);
  }

  void add_value(std::string name, KeyPath path, const Value& value) try {
    plan_.tail_.resize(format::aligned(plan_.tail_.size()));
    const std::uint64_t offset = plan_.tail_offset_ + plan_.tail_.size();
    const std::string bytes = encoded(value);
    plan_.tail_ += bytes;
    plan_.values_.push_back({std::move(name), std::move(path), {offset, bytes.size()}});
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", name, error.what()), error.errno_value());
  }

  RankPlan& plan_;
  const Value& state_;
  const RankRoles& roles_;
  const Items* last_;
  std::unordered_map<std::string, const Shard*> shards_;
  std::unordered_set<std::string> shared_names_;
  std::map<View, std::size_t> written_;
  std::map<View, std::string> names_;
  std::uint64_t end_ = 0;
};

RankPlan::RankPlan(const Value& state, const RankRoles& roles, Items* cache) {
  Builder(*this, state, roles, cache).build();
  if (cache != nullptr) *cache = items_;
  catch_up();
}
RankPlan::~RankPlan() = default;

std::string RankPlan::header(std::size_t tensor) const { return items_[tensor]->encoder.header(0); }

std::string RankPlan::descriptor(std::size_t tensor, std::uint32_t crc32) const {
  const format::Encoder& encoder = items_[tensor]->encoder;
  const format::TensorRecord& record = records_[tensor];
  const format::StorageChecksums sums{.data_offset = encoder.tensors()[0].data_offset,
                                      .size = record.bytes.size(),
                                      .crc32 = crc32,
                                      .blocks = {}};
  std::string text = encoder.descriptor(0, crc32) + encoder.tail({sums});
  text.resize(record.end - record.data_offset - record.bytes.size());  // with zeros
  return text;
}

std::string RankPlan::tensor_name(std::size_t tensor, const Value&) const {
  return record_names_[tensor];
}

}  // namespace perdure::engine
