// Whether a state_dict is the one that a value was made of, but for its numbers and texts: those
// are replaced in the value on the way. Nothing else is made anew.
#pragma once

#include "object_encoder.hpp"

namespace perdure::python {

class Retracer {
 public:
  // `tensors`: of the walk that made the value; each gets the object that stands there now.
  Retracer(const Ownership& ownership, std::vector<WalkedTensor>& tensors)
      : ownership_(ownership), tensors_(tensors) {}

  // False where anything else is different, or might be. The value then is of no further use.
  bool follow(PyObject* object, Value& value);
  // Whether a text (anything that is not a number) was replaced.
  bool text_changed() const { return text_changed_; }

 private:
  bool same(PyObject* object, Value& value, Py_ssize_t holders);
  bool same_parts(PyObject* object, Value& value);
  bool same_list(PyObject* list, Value::Items& items);
  bool same_tuple(PyObject* tuple, Value::Items& items);
  bool same_mapping(PyObject* dict, Dict& value);
  bool same_items(PyObject* dict, Dict& value);
  bool same_tensor(PyObject* object, Value& value);
  bool same_flags(PyObject* object, const Tensor& tensor) const;
  bool replace_scalar(PyObject* object, Value& value);

  const Ownership& ownership_;
  std::vector<WalkedTensor>& tensors_;
  std::size_t next_tensor_ = 0;
  AddressMap<const void*> partner_;  // object -> identity of its value
  AddressSet taken_;                 // values that have a partner and are shared
  bool in_part_ = false;
  bool text_changed_ = false;
};

}  // namespace perdure::python
