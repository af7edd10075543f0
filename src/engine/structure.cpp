#include "engine/structure.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <map>

#include "format/contents.hpp"
#include "format/zip_records.hpp"

namespace perdure::engine {
namespace {

using format::Decoded;
using Origin = Structure::Origin;

// What plain data cannot hold must not cost the tensors beside it.
Structure decode(std::string_view text, Origin origin) {
  const format::Pickle pickle = format::read_pickle(text);
  try {
    return {origin, format::decode(pickle, {}, false), {}};
  } catch (const Error& error) {
    return {origin, format::decode(pickle, {}, true),
            fmt::format("not all of the structure is plain data: {}", error.what())};
  }
}

// A dict below `root` for each key on the way, made where it is not there.
class IndexTree {
 public:
  explicit IndexTree(Decoded& out) : out_(out) {}

  void add(const format::IndexedTensor& line) {
    require(line.path.size() <= format::kMaxDepth);
    Value* place = &out_.value;
    for (const Value& key : line.path) {
      if (place->is_none()) *place = Value(Dict());
      require(place->is_mapping());
      Dict& dict = place->as_dict();
      if (dict.find(key) == nullptr) dict.set(key, Value());
      place = dict.find(key);
    }
    require(place->is_none());
    *place = Value(tensor(line));
  }

 private:
  static void require(bool ok) {
    if (!ok) throw Error(ErrorCode::corrupt, ".perdure/index contradicts itself on its tensors");
  }
  Tensor tensor(const format::IndexedTensor& line) const {
    Tensor tensor = line.geometry;
    const std::uint64_t end = tensor.byte_range().second;
    if (line.record < 0) {
      tensor.storage = std::make_shared<TensorStorage>();
      tensor.storage->size = end;
    } else {
      tensor.storage = out_.storages.at(static_cast<std::size_t>(line.record));
      require(end <= tensor.storage->size);
    }
    tensor.storage->device = line.device;
    return tensor;
  }

  Decoded& out_;
};

Structure from_index(const format::BlockIndex& index) {
  Structure out{Origin::index,
                {},
                "data.pkl is damaged: names, dtypes and shapes come from .perdure/index, which "
                "lists tensors alone and does not tell a list from a dict; all are dicts here"};
  for (const format::StorageChecksums& sums : index.storages) {
    const std::size_t number = out.decoded.storages.size();
    out.decoded.storages.push_back(std::make_shared<TensorStorage>());
    out.decoded.storages.back()->size = sums.size;
    out.decoded.storages.back()->record = static_cast<std::int64_t>(number);
    out.decoded.keys.push_back(std::to_string(number));
  }
  IndexTree tree(out.decoded);
  for (const format::IndexedTensor& line : index.tensors) tree.add(line);
  return out;
}

using Sizes = std::map<std::string, std::uint64_t>;

Sizes sizes_of(const Decoded& decoded) {
  Sizes sizes;
  for (std::size_t i = 0; i < decoded.keys.size(); ++i)
    sizes[decoded.keys[i]] = decoded.storages[i]->size;
  return sizes;
}

// One record of another size, and every name behind it may be wrong.
void check_alike(const Remains& remains, const std::string& like, const Sizes& expected) {
  const auto expects = [&](const std::string& key, std::uint64_t size) {
    const auto at = expected.find(key);
    return at != expected.end() && at->second == size;
  };
  Sizes found;  // where several claim a record, one that fits wins
  for (const auto& [key, size] : remains.sized_storages())
    if (expects(key, size))
      found[key] = size;
    else
      found.try_emplace(key, size);
  for (const auto& [key, size] : found) {
    if (expects(key, size)) continue;
    throw Error(
        ErrorCode::invalid,
        fmt::format("{} is of another structure than {}: record data/{} has {} bytes there "
                    "and {} here; give a checkpoint that the same program wrote",
                    like, remains.source().name(), key,
                    expected.contains(key) ? std::to_string(expected.at(key)) : "no", size));
  }
}

Structure from_like(const Source& source, const std::shared_ptr<const Source>& like) {
  const format::ZipRecords records(*like);
  records.read_info();  // of a newer format: refused
  const std::string text = records.read_required("data.pkl");
  Structure out = format::with_file_name(*like, [&] { return decode(text, Origin::like); });
  out.note = fmt::format(
      "{}: names, dtypes and shapes are not there any more; they come from {}, all bytes are the "
      "file's own",
      source.name(), like->name());
  return out;
}

Structure find_structure(const Remains& remains, const std::shared_ptr<const Source>& like) {
  const Source& source = remains.source();
  if (const auto text = remains.read_text("data.pkl"))
    return format::with_file_name(source, [&] { return decode(*text, Origin::pickle); });
  if (remains.index())
    return format::with_file_name(source, [&] { return from_index(*remains.index()); });
  if (like) return from_like(source, like);
  throw NamesLost(ErrorCode::corrupt,
                  fmt::format("{}: the structure (data.pkl) is lost, and with it the names, dtypes "
                              "and shapes of its tensors",
                              source.name()));
}

}  // namespace

Structure structure_of(Remains& remains, const std::shared_ptr<const Source>& like) {
  Structure out = find_structure(remains, like);
  const Sizes sizes = sizes_of(out.decoded);
  remains.learn_sizes(sizes);
  if (out.origin == Origin::like) check_alike(remains, like->name(), sizes);
  return out;
}

}  // namespace perdure::engine
