// From a parsed data.pkl to a Value: the few calls that PyTorch's files are made of get their
// meaning here, by whole (module, name) pairs; everything else stays an inert Opaque.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <perdure/value.hpp>
#include <string_view>
#include <vector>

#include "format/pickle_reader.hpp"

namespace perdure::format {

struct Decoded {
  Value value;
  std::vector<std::shared_ptr<TensorStorage>>
      storages;                         // in the order of first mention; data == nullptr
  std::vector<std::string> keys;        // of the storages: the N of data/N
  std::vector<std::size_t> item_sizes;  // of the storages: what their classes count in
  bool has_opaque = false;              // so there may be storages that nobody here knows of
};

// Size in bytes of the record data/<key>, or nothing where the file has none. An empty function:
// the pickle's word is taken, as long as it does not contradict itself.
using RecordSize = std::function<std::optional<std::uint64_t>(std::string_view key)>;

// A pickle's name in messages, and the folder of its storages.
struct PickleOrigin {
  std::string_view name = "data.pkl";
  std::string_view folder = "data";
};

// Error(corrupt) for a known call with impossible arguments (a tensor that reaches outside of its
// record), Error(unsupported), with the place, for what is opaque, unless `allow_opaque`.
Decoded decode(const Pickle& pickle, const RecordSize& record_size, bool allow_opaque,
               PickleOrigin origin = {});

}  // namespace perdure::format
