// Where in a state a walk is: a chain on the stack, made into a perdure.places.Place where there is
// something to say.
#pragma once

#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "torch_objects.hpp"

namespace perdure::python {

class Place {
 public:
  static Place root(PyObject* name) { return {nullptr, name, 0, Step::key}; }
  Place key(PyObject* x) const { return {this, x, 0, Step::key}; }
  Place position(Py_ssize_t x) const { return {this, nullptr, x, Step::position}; }
  Place attribute(PyObject* name) const { return {this, name, 0, Step::attribute}; }

  std::string root_name() const {
    return parent_ ? parent_->root_name() : nanobind::cast<std::string>(nanobind::handle(name_));
  }
  nanobind::tuple as_tuple() const {
    nanobind::list steps;
    collect(steps);
    return nanobind::tuple(steps);
  }
  // Raises the error for a value of a good type that cannot be written as it is.
  [[noreturn]] void refuse(const std::string& what) const {
    torch_objects().refuse(as_tuple(), what);
    throw Error(ErrorCode::invalid, what);  // not reached
  }

 private:
  enum class Step : std::uint8_t { key, position, attribute };

  Place(const Place* parent, PyObject* name, Py_ssize_t number, Step step)
      : parent_(parent), name_(name), number_(number), step_(step) {}

  void collect(nanobind::list& steps) const {
    if (parent_ != nullptr) parent_->collect(steps);
    if (step_ == Step::position)
      steps.append(number_);
    else if (step_ == Step::attribute)
      steps.append(torch_objects().attribute(nanobind::handle(name_)));
    else
      steps.append(nanobind::handle(name_));
  }

  const Place* parent_;
  PyObject* name_;  // borrowed
  Py_ssize_t number_;
  Step step_;
};

}  // namespace perdure::python
