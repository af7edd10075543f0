#include "format/outline.hpp"

#include <cstdint>
#include <unordered_map>

#include "format/coding.hpp"
#include "format/pickle_number.hpp"
#include "format/pickle_reader.hpp"
#include "format/pickle_writer.hpp"
#include "format/storage_plan.hpp"

namespace perdure::format {
namespace {

constexpr std::size_t kMaxText = std::size_t{1} << 24;

// What begins a part of the text; mostly, the kind of the value follows.
enum class Mark : std::uint8_t { number, exact, container, again, kept, tensor, attributes };

class OutlineWalk {
 public:
  void visit(const Value& value) {
    if (unfit_) return;
    if (!in_key_ && is_number(value)) {
      put_mark(Mark::number);  // of whatever kind
      outline_.numbers.push_back(&value);
      unfit_ = outline_.numbers.size() > kMaxHoles;
    } else if (value.kind() == Kind::tensor || value.is_mapping() || value.is_sequence()) {
      visit_parts(value);
    } else {
      mark(Mark::exact, value);
      put_scalar(value);
    }
  }
  std::optional<Outline> finish() && {
    if (unfit_) return std::nullopt;
    return std::move(outline_);
  }

 private:
  void mark(Mark mark, const Value& value) {
    put_mark(mark);
    put<std::uint8_t>(outline_.text, static_cast<std::uint8_t>(value.kind()));
  }
  void put_mark(Mark mark) { put<std::uint8_t>(outline_.text, static_cast<std::uint8_t>(mark)); }
  void put_count(std::uint64_t x) { put<std::uint64_t>(outline_.text, x); }
  void put_text(std::string_view text) {
    put_count(text.size());
    unfit_ = unfit_ || text.size() > kMaxText;
    if (!unfit_) outline_.text += text;
  }
  void put_scalar(const Value& value) {
    if (is_number(value)) return put_number(outline_.text, value);
    if (value.kind() == Kind::dtype) return put_count(static_cast<std::uint8_t>(value.as_dtype()));
    if (value.kind() == Kind::opaque) return;  // will be refused
    if (value.kind() != Kind::complex) return put_text(value.as_string());
    put_real(outline_.text, value.as_complex().real());
    put_real(outline_.text, value.as_complex().imag());
  }

  // What has an identity: whether it is shared shows in the pickle.
  void visit_parts(const Value& value) {
    const bool shared = value.use_count() > 1;
    if (shared) {
      const auto [it, fresh] = shared_.try_emplace(value.identity(), shared_.size());
      if (!fresh) {
        mark(Mark::again, value);
        return put_count(it->second);
      }
    }
    if (value.kind() == Kind::tensor)
      visit_tensor(value, shared);
    else if (value.is_mapping() && value.as_dict().structure() != 0)
      visit_kept(value, shared);
    else
      visit_container(value, shared);
  }
  void visit_kept(const Value& value, bool shared) {
    mark(Mark::kept, value);
    put<std::uint8_t>(outline_.text, shared);
    put_count(value.as_dict().structure());
  }
  void visit_container(const Value& value, bool shared) {
    mark(Mark::container, value);
    put<std::uint8_t>(outline_.text, shared);
    unfit_ = ++depth_ > kMaxDepth || outline_.text.size() > kMaxText;
    if (unfit_) return;
    if (value.is_mapping()) {
      visit_entries(value.as_dict());
      if (value.as_dict().attributes()) {
        put_mark(Mark::attributes);
        visit_entries(*value.as_dict().attributes());
      }
    } else {
      put_count(value.as_items().size());
      for (const Value& item : value.as_items()) visit(item);
    }
    --depth_;
  }
  void visit_entries(const Dict& dict) {
    put_count(dict.size());
    for (const auto& [key, value] : dict) {
      ++in_key_;
      visit(key);
      --in_key_;
      visit(value);
    }
  }
  void visit_tensor(const Value& value, bool shared) {
    const Tensor& tensor = value.as_tensor();
    mark(Mark::tensor, value);
    for (const bool flag : {shared, tensor.requires_grad, tensor.parameter, tensor.conj, tensor.neg,
                            tensor.storage != nullptr})
      put<std::uint8_t>(outline_.text, flag);
    put<std::uint8_t>(outline_.text, static_cast<std::uint8_t>(tensor.liveness));
    put<std::uint8_t>(outline_.text, static_cast<std::uint8_t>(tensor.dtype));
    put_count(static_cast<std::uint64_t>(tensor.storage_offset));
    put_count(tensor.shape.size());
    for (const std::int64_t x : tensor.shape) put_count(static_cast<std::uint64_t>(x));
    put_count(tensor.strides.size());
    for (const std::int64_t x : tensor.strides) put_count(static_cast<std::uint64_t>(x));
    if (tensor.storage) visit_storage(*tensor.storage);
  }
  void visit_storage(const TensorStorage& storage) {
    put_text(storage.device);
    put_count(storage.size);
    put<std::uint8_t>(outline_.text, storage.data != nullptr);
    if (storage.device == "meta") return;  // no record
    const std::size_t number = by_memory_.find_or_add(storage);
    put_count(number);
    if (number < memories_.size()) return;
    memories_.emplace_back();
    memories_.back().storage = &storage;
    outline_.memories.push_back(&storage);
  }

  Outline outline_;
  std::vector<StorageRecord> memories_;
  MemoryTable by_memory_{memories_};
  std::unordered_map<const void*, std::uint64_t> shared_;  // identity -> how many were before it
  std::uint32_t depth_ = 0;
  int in_key_ = 0;
  bool unfit_ = false;
};

}  // namespace

std::optional<Outline> outline_of(const Value& state) {
  OutlineWalk walk;
  walk.visit(state);
  return std::move(walk).finish();
}

}  // namespace perdure::format
