// Which storages of a file can be read straight into the memory of live objects, and reading them.
#pragma once

#include <perdure/file.hpp>
#include <vector>

namespace perdure::engine {

// A storage of the file goes straight into live memory where every tensor over it that is wanted
// stands at the place of a tensor of the object's own (Liveness) with the same form, all of them
// agree on where in memory that is, and they cover all of it: so that not a byte is written that is
// not theirs. Where the file gives two storages to what is one memory here, neither is: their
// values must be compared first. All of that is for others to read into memory of its own.
class LiveRead {
 public:
  explicit LiveRead(const CheckpointFile& file) : file_(file), uses_(file.storages().size()) {}
  LiveRead(const LiveRead&) = delete;
  LiveRead& operator=(const LiveRead&) = delete;

  // `wanted`, a part of the file's value, belongs to an object whose own state is `own`. `scalars`:
  // whether also those of its tensors that are numbers rather than data (an optimizer's steps).
  void add(const Value& wanted, const Value& own, bool scalars);

  // After all were added: reads what has to go into memory of its own (see
  // CheckpointFile::read_all) ...
  void read_aside(const CheckpointFile::Allocate& allocate);
  bool has_live() const { return !live_.empty(); }
  // ... and, once nothing stands against it, what goes straight into live memory. When it throws,
  // some of that is overwritten.
  void read_live();

 private:
  // One tensor of the file and the object's tensor in its place.
  struct Pair {
    Tensor file;
    Tensor own;
    std::byte* begin() const;  // where the first byte of the file's storage would be
  };
  struct Use {
    std::vector<Pair> pairs;
    bool aside = false;
    Value any;  // one of the tensors over it
  };

  void walk(const Value& wanted, const Value* own, bool scalars);
  void add_tensor(const Value& wanted, const Value* own, bool scalars);
  bool fits(const Use& use) const;
  void put_contested_aside();

  const CheckpointFile& file_;
  std::vector<Use> uses_;  // by storage
  std::vector<std::size_t> live_;
};

}  // namespace perdure::engine
