// What one rank writes of a checkpoint that several ranks save together: a file of items, each of
// which torch.save could have written, as torch.distributed.checkpoint (DCP) lays them out.
//
//   [piece of a tensor] ...   where they lie follows from the structure of the state
//   [value] ...               rank 0: what is no tensor, for readers of DCP
//   [record]                  the state as this rank has it, pieces left out: "ranks.3" of rank 3
//
// Who writes what follows from the state alone, so that no rank has to ask another:
//   - a box of a larger tensor (Shard) is shared out over the ranks that have the same box;
//   - what optimizers step, and no other part, is the same on all ranks (data parallel) and shared
//     out over all of them: by rows where it is large, whole to one of them where it is small;
//   - other tensors of modules and optimizers (buffers) may differ between ranks, and then it is
//     those of rank 0 that count;
//   - everything else is a rank's own: random numbers, places in the data, plain values.
#pragma once

#include <memory>
#include <perdure/state.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/rank_file.hpp"
#include "format/encoder.hpp"

namespace perdure::engine {

std::string record_name(std::size_t rank);  // "ranks.3"

// A box of a tensor, in the file of the rank that writes it.
struct RankPiece {
  std::string name;  // of the tensor
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;  // of the tensor
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> sizes;
  PlacedItem place;
};

struct RankValue {
  std::string name;
  KeyPath path;
  PlacedItem place;
};

// What the entries of a state are to the ranks.
struct RankRoles {
  std::size_t rank = 0;
  std::size_t ranks = 1;
  std::set<std::string> shared;  // those whose tensors all ranks have: modules and optimizers
  std::vector<Shard> shards;
};

class RankPlan final : public format::FilePlan {
 public:
  // The pieces of the last plan, for the next one: those of the same form are not planned again.
  struct Item;
  using Items = std::vector<std::shared_ptr<const Item>>;

  // As format::Encoder's: the storages must stay alive and unchanged until their bytes are taken.
  // What is a rank's own is copied now. Error(invalid) names what cannot be saved.
  RankPlan(const Value& state, const RankRoles& roles, Items* cache);
  ~RankPlan() override;

  std::uint64_t file_size() const override { return tail_offset_ + tail_.size(); }
  std::span<const format::TensorRecord> tensors() const override { return records_; }
  std::uint64_t tail_offset() const override { return tail_offset_; }
  std::string header(std::size_t tensor) const override;
  std::string descriptor(std::size_t tensor, std::uint32_t crc32) const override;
  std::string tail(const std::vector<format::StorageChecksums>&) const override { return tail_; }
  std::string tensor_name(std::size_t tensor, const Value&) const override;

  const std::vector<RankPiece>& pieces() const { return pieces_; }
  const std::vector<RankValue>& values() const { return values_; }  // the record is the last
  // Of all tensors that the ranks share, by name; of rank 0 these are what a reader is told.
  struct Named {
    std::string name;
    KeyPath path;
    DType dtype = DType::float32;
    std::vector<std::int64_t> shape;
  };
  const std::vector<Named>& named() const { return named_; }

 private:
  class Builder;

  std::vector<RankPiece> pieces_;
  std::vector<Named> named_;
  std::vector<RankValue> values_;
  Items items_;  // of each of records_
  std::vector<format::TensorRecord> records_;
  std::vector<std::string> record_names_;
  std::uint64_t tail_offset_ = 0;
  std::string tail_;
};

}  // namespace perdure::engine
