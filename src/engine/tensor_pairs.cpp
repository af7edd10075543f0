#include "engine/tensor_pairs.hpp"

#include <algorithm>
#include <memory>
#include <mutex>

#include "engine/gather.hpp"
#include "format/crc32.hpp"
#include "io/fresh_memory.hpp"

namespace perdure::engine {
namespace {

// What is gathered of each file at one go.
constexpr std::uint64_t kGathered = std::uint64_t{32} << 20;

struct Loop {
  std::int64_t count, stride_a, stride_b;
};

std::vector<Loop> loops_of(const Tensor& a, const Tensor& b, std::uint64_t& repeats) {
  std::vector<Loop> loops;
  for (std::size_t i = 0; i < a.shape.size(); ++i) {
    if (a.strides[i] == 0 && b.strides[i] == 0)
      repeats *= static_cast<std::uint64_t>(a.shape[i]);
    else if (a.shape[i] > 1)
      loops.push_back({a.shape[i], a.strides[i], b.strides[i]});
  }
  std::ranges::stable_sort(loops,
                           [](const Loop& x, const Loop& y) { return x.stride_a > y.stride_a; });
  for (std::size_t i = loops.size(); i-- > 1;) {
    const Loop& outer = loops[i - 1];
    Loop& inner = loops[i];
    if (outer.stride_a != inner.count * inner.stride_a ||
        outer.stride_b != inner.count * inner.stride_b)
      continue;
    inner.count *= outer.count;
    loops.erase(loops.begin() + static_cast<std::ptrdiff_t>(i) - 1);
  }
  return loops;
}

void require_end(const Tensor& a, const Tensor& b) {
  constexpr std::uint64_t kMostRepeats = 1024;
  constexpr std::uint64_t kFew = std::uint64_t{1} << 26;
  const auto places = [](const Tensor& tensor) {
    const auto [first, last] = tensor.byte_range();
    return (last - first) / itemsize(tensor.dtype);
  };
  const std::uint64_t count = a.numel();
  if (count > kFew && count / kMostRepeats > std::max(places(a), places(b)))
    throw Error(ErrorCode::unsupported,
                "a tensor whose strides let its elements overlap a thousand times and more");
}

bool is_all_of_its_storage(const Tensor& tensor) {
  return tensor.storage->data == nullptr && tensor.storage_offset == 0 &&
         (tensor.shape.empty() || (tensor.shape.size() == 1 && tensor.strides[0] == 1)) &&
         tensor.numel() * itemsize(tensor.dtype) == tensor.storage->size;
}

std::size_t number_of(const Tensor& tensor) {
  return static_cast<std::size_t>(tensor.storage->record);
}

}  // namespace

TensorPairs::Pair TensorPairs::reduced(const Tensor& a, const Tensor& b,
                                       const DiffOptions& options) {
  Pair out{
      a, b, 1, {{a.dtype, a.conj, a.neg}, {b.dtype, b.conj, b.neg}, options.atol, options.rtol}};
  const std::vector<Loop> loops = loops_of(a, b, out.repeats);
  for (Tensor* tensor : {&out.a, &out.b}) {
    tensor->shape.clear();
    tensor->strides.clear();
    for (const Loop& loop : loops) {
      tensor->shape.push_back(loop.count);
      tensor->strides.push_back(tensor == &out.a ? loop.stride_a : loop.stride_b);
    }
  }
  require_end(out.a, out.b);
  return out;
}

std::size_t TensorPairs::add(const Tensor& a, const Tensor& b) {
  Pair pair = reduced(a, b, options_);
  const auto [it, is_new] = known_.emplace(
      Key{a.storage.get(), a.dtype, a.conj, a.neg, a.storage_offset, pair.a.strides,
          b.storage.get(), b.dtype, b.conj, b.neg, b.storage_offset, pair.b.strides, pair.a.shape},
      pairs_.size());
  if (!is_new) return it->second;
  if (streams(pair) && by_storage_.emplace(std::pair(a.storage.get(), b.storage.get()), 0).second) {
    streamed_.push_back(pairs_.size());
    bytes_ += a.storage->size + b.storage->size;
  } else {
    gathered_.push_back(pairs_.size());
    bytes_ += pair.a.numel() * (itemsize(a.dtype) + itemsize(b.dtype));
  }
  pairs_.push_back(std::move(pair));
  return pairs_.size() - 1;
}

bool TensorPairs::streams(const Pair& pair) const {
  return is_all_of_its_storage(pair.a) && is_all_of_its_storage(pair.b);
}

void TensorPairs::run() {
  stream();
  gather();
}

void TensorPairs::stream() {
  std::vector<std::pair<std::size_t, std::size_t>> storages;
  for (const std::size_t number : streamed_)
    storages.emplace_back(number_of(pairs_[number].a), number_of(pairs_[number].b));
  std::mutex mutex;
  a_.stream_pairs(b_, storages, [&](std::size_t i, std::uint64_t, ConstBytes a, ConstBytes b) {
    Pair& pair = pairs_[streamed_[i]];
    Distances here({pair.a.dtype, pair.a.conj, pair.a.neg}, {pair.b.dtype, pair.b.conj, pair.b.neg},
                   options_.atol, options_.rtol);
    here.add(a.data(), b.data(), a.size() / itemsize(pair.a.dtype));
    took(a.size() + b.size());
    const std::lock_guard lock(mutex);
    pair.distances.add(here);
  });
}

// As many at one go as fit the memory; a tensor that is larger, a part at a time, for each of which
// its storage is streamed.
void TensorPairs::gather() {
  std::vector<Part> parts;
  std::size_t size_a = 0;
  std::size_t size_b = 0;
  for (const std::size_t number : gathered_) {
    const Pair& pair = pairs_[number];
    const std::uint64_t each_a = itemsize(pair.a.dtype);
    const std::uint64_t each_b = itemsize(pair.b.dtype);
    for (std::uint64_t done = 0; done < pair.a.numel();) {
      const std::uint64_t room =
          std::min((kGathered - size_a) / each_a, (kGathered - size_b) / each_b);
      const std::uint64_t count = std::min(room, pair.a.numel() - done);
      if (count > 0) {
        parts.push_back({number, done, done + count, size_a, size_b});
        size_a += count * each_a;
        size_b += count * each_b;
        done += count;
      }
      if (done == pair.a.numel()) break;
      gather(parts, size_a, size_b);
      parts.clear();
      size_a = size_b = 0;
    }
  }
  gather(parts, size_a, size_b);
}

void TensorPairs::gather(const std::vector<Part>& parts, std::size_t size_a, std::size_t size_b) {
  if (parts.empty()) return;
  const std::shared_ptr<std::byte> a = io::allocate_fresh(size_a);
  const std::shared_ptr<std::byte> b = io::allocate_fresh(size_b);
  fill(a_, parts, true, a.get());
  fill(b_, parts, false, b.get());
  for (const Part& part : parts)
    pairs_[part.pair].distances.add(a.get() + part.at_a, b.get() + part.at_b,
                                    part.last - part.first);
}

void TensorPairs::fill(const CheckpointFile& file, const std::vector<Part>& parts, bool first_side,
                       std::byte* memory) const {
  std::map<std::size_t, std::vector<Gather>> streams;  // by storage
  for (const Part& part : parts) {
    const Tensor& tensor = first_side ? pairs_[part.pair].a : pairs_[part.pair].b;
    const TensorStorage& storage = *tensor.storage;
    Gather gather(tensor, part.first, part.last, memory + (first_side ? part.at_a : part.at_b));
    if (storage.data != nullptr)  // read when the file was opened
      gather.take(0, {storage.data, storage.size});
    else
      streams[number_of(tensor)].push_back(std::move(gather));
  }
  std::vector<std::size_t> storages;
  for (const auto& [storage, gathers] : streams) storages.push_back(storage);
  file.stream(storages, [&](std::size_t storage, std::uint64_t at, ConstBytes bytes) {
    for (const Gather& gather : streams.at(storage)) gather.take(at, bytes);
    took(bytes.size());
  });
}

Distance TensorPairs::result(std::size_t number) const {
  const Pair& pair = pairs_[number];
  Distance out = pair.distances.result();
  for (std::uint64_t* count : {&out.elements, &out.changed, &out.beyond}) *count *= pair.repeats;
  return out;
}

}  // namespace perdure::engine
