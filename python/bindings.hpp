// The parts of the module perdure._core: types and calls of the C++ API under the same names, no
// logic. What a Python user sees is the package perdure, which stands on this.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>
#include <perdure/error.hpp>
#include <string>

namespace perdure::python {

void bind_values(nanobind::module_& m);   // Value, Tensor, Storage
void bind_encode(nanobind::module_& m);   // encode, EntryEncoder
void bind_files(nanobind::module_& m);    // CheckpointFile, save, verify
void bind_numbers(nanobind::module_& m);  // stats, diff
void bind_dcp(nanobind::module_& m);      // NewDirectory, DcpParts
void bind_engine(nanobind::module_& m);   // TrainingState, CheckpointManager, SaveHandle

// A text for people as a str, whatever is in it.
nanobind::object text_for_people(const std::string& text);
// The Python exception for an error of the core (perdure.errors.from_core decides which class).
nanobind::object exception_of(const Error& error);
// The Python exception for what a background save had to say; None for a null pointer.
nanobind::object exception_of(const std::exception_ptr& error);
// Called in a catch block around a Python callback: what it raised is to the core an Error of the
// same code, where it is a perdure.Error: damage is what a restore falls back on, and other ranks
// are told. The caller of the core gets the exception itself. Everything else goes on as it is.
[[noreturn]] void rethrow_from_callback(nanobind::python_error& raised);

}  // namespace perdure::python
