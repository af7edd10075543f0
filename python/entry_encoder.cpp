#include "entry_encoder.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace nb = nanobind;

namespace perdure::python {
namespace {

std::uint64_t next_structure() {
  static std::uint64_t last = 0;  // the GIL guards it
  return ++last;
}

}  // namespace

Value EntryEncoder::encode(nb::handle state_dict) {
  const auto owner = ownership();
  if (Value last = std::exchange(kept_, Value()); last.is_mapping()) {
    Retracer retracer(*owner, tensors_);
    if (retracer.follow(state_dict.ptr(), last)) {
      if (retracer.text_changed()) last.as_dict().keep_as(next_structure());
      return kept_ = std::move(last);
    }
  }
  forget();
  ObjectEncoder encoder(owner.get());
  Value value = encoder.encode(state_dict.ptr(), Place::root(root_.ptr()), 0);
  remember(encoder, value);
  return value;
}

// What is kept must be alive anyway: a value with anything temporary in it (a hook's copies, say)
// would hold that memory until the next save.
void EntryEncoder::remember(ObjectEncoder& encoder, const Value& value) {
  tensors_ = std::move(encoder.tensors());
  for (WalkedTensor& walked : tensors_) walked.claim.liveness = walked.tensor->liveness;
  const bool all_own = std::ranges::all_of(tensors_, [](const auto& t) { return t.claim.own; });
  if (all_own && encoder.retraceable() && value.is_mapping() && torch_objects().read_tensor) {
    kept_ = value;
    kept_.as_dict().keep_as(next_structure());
  } else {
    std::erase_if(tensors_, [](const auto& t) { return t.claim.liveness != Liveness::stepped; });
  }
}

void EntryEncoder::forget() {
  kept_ = Value();
  tensors_.clear();
}

std::vector<std::uint64_t> EntryEncoder::versions() const {
  std::vector<std::uint64_t> out;
  for (const WalkedTensor& walked : tensors_)
    if (walked.claim.liveness == Liveness::stepped) out.push_back(version_of(walked.object.ptr()));
  return out;
}

}  // namespace perdure::python
