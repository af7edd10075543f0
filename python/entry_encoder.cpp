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

Value EntryEncoder::encode(nb::handle state_dict, nb::object dtensors) {
  const auto owner = ownership();
  if (Value last = std::exchange(kept_, Value()); last.is_mapping()) {
    Retracer retracer(*owner, tensors_);
    if (retracer.follow(state_dict.ptr(), last)) {
      if (retracer.text_changed()) last.as_dict().keep_as(next_structure());
      dtensors_ = std::move(dtensors);
      return kept_ = std::move(last);
    }
  }
  forget();
  dtensors_ = std::move(dtensors);
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
  dtensors_.reset();
}

// An operation on a DTensor counts at the DTensor, and not at its local part.
std::vector<std::uint64_t> EntryEncoder::versions() const {
  AddressMap<PyObject*> wrapper;
  if (dtensors_.is_valid() && !dtensors_.is_none())
    for (const nb::handle dtensor : dtensors_)
      if (PyObject* local = local_tensor(dtensor.ptr()))
        *wrapper.insert(local).first = dtensor.ptr();
  std::vector<std::uint64_t> out;
  for (const WalkedTensor& walked : tensors_) {
    if (walked.claim.liveness != Liveness::stepped) continue;
    PyObject* const* found = wrapper.find(walked.object.ptr());
    out.push_back(version_of(walked.object.ptr()) + (found ? version_of(*found) : 0));
  }
  return out;
}

}  // namespace perdure::python
