#include <nanobind/stl/complex.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <perdure/diff.hpp>
#include <perdure/stats.hpp>

#include "bindings.hpp"

namespace nb = nanobind;

namespace perdure::python {

namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

// Names come from files: what is no UTF-8 must not make them unreadable.
template <class T>
auto text_of(std::string T::* member) {
  return [member](const T& object) { return text_for_people(object.*member); };
}

void bind_stats(nb::module_& m) {
  nb::class_<Figures>(m, "Figures")
      .def_ro("elements", &Figures::elements)
      .def_ro("nan", &Figures::nan)
      .def_ro("pos_inf", &Figures::pos_inf)
      .def_ro("neg_inf", &Figures::neg_inf)
      .def_ro("zeros", &Figures::zeros)
      .def_ro("min", &Figures::min)
      .def_ro("max", &Figures::max)
      .def_ro("mean", &Figures::mean)
      .def_ro("rms", &Figures::rms)
      .def_ro("norm", &Figures::norm);
  nb::class_<TensorStats>(m, "TensorStats")
      .def_prop_ro("name", text_of(&TensorStats::name))
      .def_prop_ro("dtype", [](const TensorStats& stats) { return dtype_name(stats.dtype); })
      .def_ro("shape", &TensorStats::shape)
      .def_ro("figures", &TensorStats::figures)
      .def_prop_ro("same_as", text_of(&TensorStats::same_as))
      .def_prop_ro("parameter", text_of(&TensorStats::parameter))
      .def_ro("problem", &TensorStats::problem);
  nb::class_<GroupStats>(m, "GroupStats")
      .def_prop_ro("name", text_of(&GroupStats::name))
      .def_ro("depth", &GroupStats::depth)
      .def_ro("tensors", &GroupStats::tensors)
      .def_ro("figures", &GroupStats::figures);
  nb::class_<MomentumStats>(m, "MomentumStats")
      .def_prop_ro("parameter", text_of(&MomentumStats::parameter))
      .def_prop_ro("optimizer", text_of(&MomentumStats::optimizer))
      .def_prop_ro("weight",
                   [](const MomentumStats& momentum) -> std::optional<std::size_t> {
                     if (momentum.weight == MomentumStats::kNone) return std::nullopt;
                     return momentum.weight;
                   })
      .def_ro("momentum", &MomentumStats::momentum);
  nb::class_<StatsReport>(m, "StatsReport")
      .def_ro("path", &StatsReport::path)
      .def_ro("bytes", &StatsReport::bytes)
      .def_ro("tensors", &StatsReport::tensors)
      .def_ro("groups", &StatsReport::groups)
      .def_ro("momentum", &StatsReport::momentum);
  const auto run = [](const std::filesystem::path& path, const std::string& pattern) {
    return stats(path, {.pattern = pattern});
  };
  m.def("stats", run, nb::arg("path"), nb::arg("pattern"), Released());
}

void bind_diff(nb::module_& m) {
  nb::class_<Distance>(m, "Distance")
      .def_ro("elements", &Distance::elements)
      .def_ro("changed", &Distance::changed)
      .def_ro("beyond", &Distance::beyond)
      .def_ro("max_absolute", &Distance::max_absolute)
      .def_ro("max_relative", &Distance::max_relative)
      .def_ro("max_ulp", &Distance::max_ulp)
      .def_ro("cosine", &Distance::cosine);
  nb::enum_<Difference::What>(m, "DifferenceKind")
      .value("added", Difference::What::added)
      .value("removed", Difference::What::removed)
      .value("value", Difference::What::value)
      .value("tensor", Difference::What::tensor);
  nb::class_<Difference>(m, "Difference")
      .def_ro("what", &Difference::what)
      .def_prop_ro("name", text_of(&Difference::name))
      .def_prop_ro("before", text_of(&Difference::before))
      .def_prop_ro("after", text_of(&Difference::after))
      .def_ro("distance", &Difference::distance);
  nb::class_<DiffReport>(m, "DiffReport")
      .def_ro("path_a", &DiffReport::path_a)
      .def_ro("path_b", &DiffReport::path_b)
      .def_ro("differences", &DiffReport::differences)
      .def_ro("tensors", &DiffReport::tensors)
      .def_ro("by_checksum", &DiffReport::by_checksum)
      .def_ro("within_tolerance", &DiffReport::within_tolerance)
      .def_ro("values", &DiffReport::values)
      .def_ro("prefix", &DiffReport::prefix)
      .def_ro("prefix_in_second", &DiffReport::prefix_in_second);
  const auto run = [](const std::filesystem::path& a, const std::filesystem::path& b,
                      const std::string& pattern, double atol, double rtol, bool full) {
    return diff(a, b, {.pattern = pattern, .atol = atol, .rtol = rtol, .full = full});
  };
  m.def("diff", run, nb::arg("a"), nb::arg("b"), nb::arg("pattern"), nb::arg("atol"),
        nb::arg("rtol"), nb::arg("full"), Released());
}

}  // namespace

void bind_numbers(nb::module_& m) {
  bind_stats(m);
  bind_diff(m);
}

}  // namespace perdure::python
