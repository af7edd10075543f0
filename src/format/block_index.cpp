#include "format/block_index.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <utility>

#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

constexpr std::string_view kMagic = "PERDUREX";
constexpr std::uint8_t kRequiresGrad = 1, kParameter = 2, kConj = 4, kNeg = 8, kElsewhere = 16;
constexpr std::uint8_t kString = 0, kInteger = 1, kRepr = 2;
constexpr std::size_t kReprLimit = 200;
constexpr std::uint64_t kStorageSize = 20;  // bytes of a storage in the index, without its blocks
constexpr std::size_t kUsualLine = 128;     // bytes of a tensor in the index, to reserve

[[noreturn]] void damaged(const char* what) {
  throw Error(ErrorCode::corrupt, fmt::format(".perdure/index: {}", what));
}

void put_key_text(std::string& out, std::uint8_t tag, std::string_view text) {
  put<std::uint8_t>(out, tag);
  put<std::uint32_t>(out, static_cast<std::uint32_t>(text.size()));
  out += text;
}

void put_integer_key(std::string& out, std::int64_t x) {
  char digits[24];
  const auto [end, error] = std::to_chars(std::begin(digits), std::end(digits), x);
  put_key_text(out, kInteger, {digits, end});
}

void put_key(std::string& out, const PathStep& step) {
  if (step.key == nullptr) return put_integer_key(out, static_cast<std::int64_t>(step.position));
  const Value& key = *step.key;
  if (key.kind() == Kind::string) return put_key_text(out, kString, key.as_string());
  if (key.kind() == Kind::integer && key.as_big_int() == nullptr)
    return put_integer_key(out, key.as_int());
  put_key_text(out, kRepr, repr(key, kReprLimit));
}

Value take_key(ByteReader& in) {
  const auto tag = in.take<std::uint8_t>();
  const std::string_view text = in.take_bytes(in.take<std::uint32_t>());
  if (!is_utf8(text)) damaged("a key that is no UTF-8");
  if (tag == kString || tag == kRepr) return Value(text);
  if (tag != kInteger) damaged("a key of an unknown kind");
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    damaged("an integer key that is none");
  return Value(number);
}

// On no device that its record and flags already tell.
bool is_elsewhere(const PlannedTensor& planned) {
  return planned.record >= 0 && planned.tensor->storage->device != "cpu";
}

std::uint8_t flags_of(const PlannedTensor& planned) {
  const Tensor& tensor = *planned.tensor;
  return static_cast<std::uint8_t>((tensor.requires_grad ? kRequiresGrad : 0) |
                                   (tensor.parameter ? kParameter : 0) | (tensor.conj ? kConj : 0) |
                                   (tensor.neg ? kNeg : 0) |
                                   (is_elsewhere(planned) ? kElsewhere : 0));
}

// `keys` is room for the path, of which the plan has the last step and whose parent each one is.
void put_tensor(std::string& out, const PlannedTensor& planned, const StoragePlan& plan,
                std::vector<const PathStep*>& keys) {
  keys.clear();
  for (std::uint32_t step = planned.step; step != 0; step = plan.steps()[step].parent)
    keys.push_back(&plan.steps()[step]);
  const Tensor& tensor = *planned.tensor;
  put<std::uint64_t>(out, static_cast<std::uint64_t>(planned.record));
  put<std::uint8_t>(out, static_cast<std::uint8_t>(tensor.dtype));
  put<std::uint8_t>(out, flags_of(planned));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(keys.size()));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(tensor.shape.size()));
  put<std::uint64_t>(out, static_cast<std::uint64_t>(planned.storage_offset));
  for (const std::int64_t size : tensor.shape)
    put<std::uint64_t>(out, static_cast<std::uint64_t>(size));
  for (const std::int64_t stride : tensor.strides)
    put<std::uint64_t>(out, static_cast<std::uint64_t>(stride));
  for (std::size_t i = keys.size(); i-- > 0;) put_key(out, *keys[i]);
  if (!is_elsewhere(planned)) return;
  put<std::uint32_t>(out, static_cast<std::uint32_t>(tensor.storage->device.size()));
  out += tensor.storage->device;
}

std::vector<std::int64_t> take_numbers(ByteReader& in, std::uint32_t count) {
  if (count > in.left() / 8) damaged("more dimensions than bytes");
  std::vector<std::int64_t> out(count);
  for (std::int64_t& x : out) x = static_cast<std::int64_t>(in.take<std::uint64_t>());
  return out;
}

IndexedTensor take_tensor(ByteReader& in, std::size_t storages) {
  IndexedTensor out;
  out.record = static_cast<std::int64_t>(in.take<std::uint64_t>());
  if (out.record < -1 || out.record >= static_cast<std::int64_t>(storages))
    damaged("a tensor in a record that is not there");
  const auto dtype = in.take<std::uint8_t>();
  if (dtype >= kDTypeCount) damaged("an unknown dtype");
  out.geometry.dtype = static_cast<DType>(dtype);
  const auto flags = in.take<std::uint8_t>();
  out.geometry.requires_grad = (flags & kRequiresGrad) != 0;
  out.geometry.parameter = (flags & kParameter) != 0;
  out.geometry.conj = (flags & kConj) != 0;
  out.geometry.neg = (flags & kNeg) != 0;
  const auto keys = in.take<std::uint16_t>();
  const auto dimensions = in.take<std::uint32_t>();
  out.geometry.storage_offset = static_cast<std::int64_t>(in.take<std::uint64_t>());
  out.geometry.shape = take_numbers(in, dimensions);
  out.geometry.strides = take_numbers(in, dimensions);
  for (std::uint16_t i = 0; i < keys; ++i) out.path.push_back(take_key(in));
  out.device = out.record < 0 ? "meta" : "cpu";
  if ((flags & kElsewhere) != 0) out.device = in.take_bytes(in.take<std::uint32_t>());
  if (!is_utf8(out.device)) damaged("a device that is no UTF-8");
  return out;
}

struct Head {
  std::uint64_t block_size = 0, storages = 0, tensors = 0;
};

Head take_head(ByteReader& in) {
  if (in.take_bytes(kMagic.size()) != kMagic) damaged("does not begin as an index");
  if (const auto version = in.take<std::uint32_t>(); version != kIndexVersion)
    throw Error(
        ErrorCode::unsupported,
        fmt::format(".perdure/index has version {}, this perdure reads version {}; update perdure",
                    version, kIndexVersion));
  Head head;
  head.block_size = in.take<std::uint32_t>();
  if (head.block_size == 0) damaged("a block size of 0");
  head.storages = in.take<std::uint64_t>();
  head.tensors = in.take<std::uint64_t>();
  if (head.storages > in.left() / kStorageSize || head.tensors > in.left() / 24)
    damaged("more entries than bytes");
  return head;
}

// How a tensor's keys, joined with dots, compare with a name.
enum class Match { other, same, below };

class Comparison {
 public:
  explicit Comparison(std::string_view name) : left_(name) {}

  void add(std::string_view piece) {
    if (match_ != Match::same) return;
    const std::size_t common = std::min(piece.size(), left_.size());
    if (piece.substr(0, common) != left_.substr(0, common))
      match_ = Match::other;
    else if (common < piece.size())
      match_ = piece[common] == '.' ? Match::below : Match::other;
    left_.remove_prefix(common);
  }
  Match result() const { return match_ == Match::same && !left_.empty() ? Match::other : match_; }

 private:
  std::string_view left_;  // of the name, what no key has stood for yet
  Match match_ = Match::same;
};

// Past a tensor's line; takes no memory.
Match skip_tensor(ByteReader& in, std::string_view name) {
  in.take_bytes(9);  // record, dtype
  const auto flags = in.take<std::uint8_t>();
  const auto keys = in.take<std::uint16_t>();
  in.take_bytes(8 + 16 * std::uint64_t{in.take<std::uint32_t>()});
  Comparison comparison(name);
  for (std::uint16_t i = 0; i < keys; ++i) {
    const auto tag = in.take<std::uint8_t>();
    const std::string_view text = in.take_bytes(in.take<std::uint32_t>());
    if (i != 0) comparison.add(".");
    comparison.add(tag == kString && text.empty() ? "''" : text);
  }
  if ((flags & kElsewhere) != 0) in.take_bytes(in.take<std::uint32_t>());
  return comparison.result();
}

StorageChecksums take_storage(ByteReader& in) {
  StorageChecksums out;
  out.data_offset = in.take<std::uint64_t>();
  out.size = in.take<std::uint64_t>();
  out.crc32 = in.take<std::uint32_t>();
  return out;
}

}  // namespace

void StorageChecksums::add_block(std::uint32_t block_crc32, std::uint64_t bytes) {
  crc32 = blocks.empty() ? block_crc32 : crc32_combine(crc32, block_crc32, bytes);
  blocks.push_back(block_crc32);
}

std::uint32_t combined(const StorageChecksums& sums, std::uint64_t block_size) {
  std::uint32_t whole = 0;
  for (std::size_t block = 0; block < sums.blocks.size(); ++block) {
    const std::uint64_t size = std::min(block_size, sums.size - block * block_size);
    whole = crc32_combine(whole, sums.blocks[block], size);
  }
  return whole;
}

std::uint64_t block_count(std::uint64_t size, std::uint64_t block_size) noexcept {
  return size / block_size + (size % block_size != 0 ? 1 : 0);
}

TensorLines tensor_lines(const StoragePlan& plan) {
  TensorLines lines{.count = plan.tensors().size(), .bytes = {}};
  lines.bytes.reserve(lines.count * kUsualLine);
  std::vector<const PathStep*> keys;
  for (const PlannedTensor& planned : plan.tensors()) put_tensor(lines.bytes, planned, plan, keys);
  return lines;
}

std::uint64_t index_size(const std::vector<ZipRecord>& tensors, const TensorLines& lines) {
  std::uint64_t size = kMagic.size() + 24 + lines.bytes.size();
  for (const ZipRecord& record : tensors)
    size += kStorageSize + 4 * block_count(record.size, kBlockSize);
  return size;
}

std::string write_index(const std::vector<StorageChecksums>& storages, const TensorLines& lines) {
  std::string out(kMagic);
  out.reserve(kMagic.size() + 24 + storages.size() * 24 + lines.bytes.size());
  put<std::uint32_t>(out, kIndexVersion);
  put<std::uint32_t>(out, static_cast<std::uint32_t>(kBlockSize));
  put<std::uint64_t>(out, storages.size());
  put<std::uint64_t>(out, lines.count);
  for (const StorageChecksums& storage : storages) {
    put<std::uint64_t>(out, storage.data_offset);
    put<std::uint64_t>(out, storage.size);
    put<std::uint32_t>(out, storage.crc32);
  }
  for (const StorageChecksums& storage : storages)
    for (const std::uint32_t crc : storage.blocks) put<std::uint32_t>(out, crc);
  out += lines.bytes;
  return out;
}

BlockIndex read_index(std::string_view bytes) {
  ByteReader in(bytes, ".perdure/index");
  const Head head = take_head(in);
  BlockIndex out;
  out.block_size = head.block_size;
  for (std::uint64_t i = 0; i < head.storages; ++i) out.storages.push_back(take_storage(in));
  for (StorageChecksums& storage : out.storages) {
    const std::uint64_t blocks = block_count(storage.size, out.block_size);
    if (blocks > in.left() / 4) damaged("more blocks than bytes");
    for (std::uint64_t i = 0; i < blocks; ++i) storage.blocks.push_back(in.take<std::uint32_t>());
  }
  for (std::uint64_t i = 0; i < head.tensors; ++i)
    out.tensors.push_back(take_tensor(in, head.storages));
  if (!in.done()) damaged("bytes after its end");
  return out;
}

std::optional<Tensor> find_tensor(std::string_view bytes, std::string_view name) {
  ByteReader in(bytes, ".perdure/index");
  const Head head = take_head(in);
  const std::uint64_t storages = in.at();
  std::uint64_t blocks = 0;
  for (std::uint64_t i = 0; i < head.storages; ++i) {
    const std::uint64_t count = block_count(take_storage(in).size, head.block_size);
    if (count > bytes.size() / 4 - blocks) damaged("more blocks than bytes");
    blocks += count;
  }
  in.take_bytes(4 * blocks);
  std::optional<std::uint64_t> found;  // where its line begins
  for (std::uint64_t i = 0; i < head.tensors; ++i) {
    const std::uint64_t line = in.at();
    const Match match = skip_tensor(in, name);
    if (match == Match::below || (match == Match::same && found)) return std::nullopt;
    if (match == Match::same) found = line;
  }
  if (!found) return std::nullopt;
  ByteReader at_line(bytes.substr(*found), ".perdure/index");
  IndexedTensor tensor = take_tensor(at_line, head.storages);
  const auto [first, last] = tensor.geometry.byte_range();
  tensor.geometry.storage = std::make_shared<TensorStorage>();
  TensorStorage& storage = *tensor.geometry.storage;
  storage.device = std::move(tensor.device);
  storage.record = tensor.record;
  storage.size = last;
  if (tensor.record >= 0) {
    ByteReader at_storage(bytes.substr(storages + kStorageSize * tensor.record), ".perdure/index");
    storage.size = take_storage(at_storage).size;
  }
  if (last > storage.size) damaged("a tensor that reaches outside of its record");
  return std::move(tensor.geometry);
}

}  // namespace perdure::format
