// Which bytes of which memory go into which record, and what each tensor then looks into.
#pragma once

#include <cstdint>
#include <perdure/value.hpp>
#include <vector>

namespace perdure::format {

inline constexpr std::size_t kMaxIntBytes = 255;  // LONG1; weights_only takes nothing longer

// One record data/N. What several tensors share is written once; what no tensor covers is not
// written.
struct StorageRecord {
  const TensorStorage* storage = nullptr;
  std::uint64_t begin = 0;  // bytes of the storage that are left out in front
  std::uint64_t size = 0;   // bytes that are written
  DType dtype = DType::uint8;
  bool mixed = false;                     // tensors of several dtypes look into it
  bool quantized = false;                 // its integers are those of quantized tensors
  Liveness liveness = Liveness::stepped;  // the least that a tensor in it claims
};

// One key on the way to a tensor. Paths share their beginnings: thousands of tensors are below a
// few dicts.
struct PathStep {
  std::uint32_t parent = 0;    // place in StoragePlan::steps(); step 0 is the state itself
  const Value* key = nullptr;  // in the state; null: the position in a list or tuple
  std::uint64_t position = 0;
};

struct PlannedTensor {
  const Tensor* tensor = nullptr;
  std::uint32_t step = 0;           // the last of its path
  std::int64_t record = -1;         // -1: on the meta device, no bytes
  std::int64_t storage_offset = 0;  // elements, in the record
  bool kept = false;                // in a tree that is kept (Dict::keep_as)
  bool quantized = false;           // the integers of a quantized tensor
};

// The records that tensors were put into, by their memory.
class MemoryTable {
 public:
  explicit MemoryTable(const std::vector<StorageRecord>& records) : records_(records) {}
  // The number of the record of this memory, or of the next one to be made, which then is taken to
  // be of it.
  std::size_t find_or_add(const TensorStorage& storage);

 private:
  void grow();
  std::size_t slot_of(const TensorStorage& storage) const;

  const std::vector<StorageRecord>& records_;
  std::vector<std::uint32_t> slots_;  // number of the record + 1; 0: free
};

// Refers to the state that it was made of, and lives no longer than that.
class StoragePlan {
 public:
  // Walks the state in the order in which it will be pickled. Error(invalid) with the place of a
  // value that no file can hold: opaque objects, cycles, more than 500 levels, ints of more than
  // 255 bytes, tensors that reach outside of their storage or whose bytes are not there.
  explicit StoragePlan(const Value& state);
  StoragePlan(const StoragePlan&) = delete;
  StoragePlan& operator=(const StoragePlan&) = delete;

  const std::vector<StorageRecord>& records() const { return records_; }
  // In the order of the pickle, one for each place; a tensor in a container that is shared has one.
  const std::vector<PlannedTensor>& tensors() const { return tensors_; }
  const std::vector<PathStep>& steps() const { return steps_; }
  KeyPath path(std::uint32_t step) const;

 private:
  friend class StateWalk;
  void add_tensor(const Tensor& tensor, std::uint32_t step, bool kept);
  std::size_t record_for(const Tensor& tensor);
  void set_quantized(PlannedTensor& planned);
  void settle();
  void check_gradient(const PlannedTensor& planned, const StorageRecord& record) const;
  [[noreturn]] void refuse(std::uint32_t step, const std::string& what) const;

  std::vector<StorageRecord> records_;
  std::vector<PlannedTensor> tensors_;
  std::vector<PathStep> steps_;
  MemoryTable by_memory_{records_};
};

}  // namespace perdure::format
