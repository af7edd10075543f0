#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <perdure/convert.hpp>
#include <perdure/file.hpp>
#include <perdure/inspect.hpp>
#include <perdure/repair.hpp>

#include "bindings.hpp"

namespace nb = nanobind;

namespace perdure::python {

namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

// The bytes of a file object, read whole. The view keeps the bytes object alive; reading needs no
// GIL.
class BytesSource : public Source {
 public:
  BytesSource(nb::bytes bytes, std::string name)
      : begin_(static_cast<const std::byte*>(bytes.data())),
        size_(bytes.size()),
        name_(std::move(name)),
        owner_(bytes.release().ptr()) {}
  BytesSource(const BytesSource&) = delete;
  BytesSource& operator=(const BytesSource&) = delete;
  ~BytesSource() override {
    if (nb::detail::cleanup_guard guard{}) Py_DECREF(owner_);
  }

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override {
    if (offset > size_ || into.size() > size_ - offset)
      throw Error(ErrorCode::corrupt,
                  name_ + ": ends before offset " + std::to_string(offset + into.size()));
    std::memcpy(into.data(), begin_ + offset, into.size());
  }

 private:
  const std::byte* begin_;
  std::size_t size_;
  std::string name_;
  PyObject* owner_;
};

CheckpointFile open_bytes(nb::bytes bytes, std::string name, bool allow_opaque) {
  const auto source = std::make_shared<BytesSource>(std::move(bytes), std::move(name));
  nb::gil_scoped_release release;
  return CheckpointFile::open(source, allow_opaque);
}

VerifyReport verify_bytes(nb::bytes bytes, std::string name) {
  const auto source = std::make_shared<BytesSource>(std::move(bytes), std::move(name));
  nb::gil_scoped_release release;
  return verify(source);
}

// `allocate` gets each storage that is about to be read and calls set_data on it.
void read_all(const CheckpointFile& file, const Value& value, nb::callable allocate) {
  const auto call = [&allocate](TensorStorage& storage) {
    nb::gil_scoped_acquire gil;
    allocate(nb::cast(&storage, nb::rv_policy::reference));
  };
  nb::gil_scoped_release release;
  file.read_all(value, call);
}

void write_to(nb::callable sink, const Value& state, const CheckpointInfo& info) {
  const auto call = [&sink](ConstBytes bytes) {
    nb::gil_scoped_acquire gil;
    sink(nb::bytes(bytes.data(), bytes.size()));
  };
  nb::gil_scoped_release release;
  write_to(call, state, info);
}

void bind_info(nb::module_& m) {
  nb::class_<CheckpointInfo::Optimizer>(m, "OptimizerInfo")
      .def(nb::init<>())
      .def_rw("class_name", &CheckpointInfo::Optimizer::class_name)
      .def_rw("param_names", &CheckpointInfo::Optimizer::param_names);
  nb::class_<CheckpointInfo>(m, "CheckpointInfo")
      .def(nb::init<>())
      .def_ro("format_version", &CheckpointInfo::format_version)
      .def_ro("step", &CheckpointInfo::step)
      .def_ro("generation", &CheckpointInfo::generation)
      .def_ro("parent", &CheckpointInfo::parent)
      .def_ro("metrics", &CheckpointInfo::metrics)
      .def_ro("created", &CheckpointInfo::created)
      .def_ro("reason", &CheckpointInfo::reason)
      .def_ro("writer", &CheckpointInfo::writer)
      .def_rw("libraries", &CheckpointInfo::libraries)
      .def_ro("optimizers", &CheckpointInfo::optimizers);
}

void bind_verify(nb::module_& m) {
  nb::class_<Finding>(m, "Finding")
      .def_ro("record", &Finding::record)
      .def_ro("tensor", &Finding::tensor)
      .def_ro("offset", &Finding::offset)
      .def_ro("what", &Finding::what);
  nb::enum_<VerifyReport::State>(m, "VerifyState")
      .value("good", VerifyReport::State::good)
      .value("unchecked", VerifyReport::State::unchecked)
      .value("damaged", VerifyReport::State::damaged);
  nb::class_<VerifyReport>(m, "VerifyReport")
      .def_ro("path", &VerifyReport::path)
      .def_ro("state", &VerifyReport::state)
      .def_ro("bytes", &VerifyReport::bytes)
      .def_ro("tensors", &VerifyReport::tensors)
      .def_ro("findings", &VerifyReport::findings);
  m.def(
      "verify", [](const std::filesystem::path& path) { return verify(path); }, nb::arg("path"),
      Released());
  m.def("verify_bytes", &verify_bytes, nb::arg("bytes"), nb::arg("name"));
}

void bind_repair(nb::module_& m) {
  nb::class_<Lost>(m, "Lost")
      .def_ro("path", &Lost::path)
      .def_ro("dtype", &Lost::dtype)
      .def_ro("shape", &Lost::shape)
      .def_ro("why", &Lost::why);
  nb::class_<RepairReport>(m, "RepairReport")
      .def_ro("path", &RepairReport::path)
      .def_prop_ro("tensors", [](const RepairReport& report) { return report.saved.tensors; })
      .def_prop_ro("bytes", [](const RepairReport& report) { return report.saved.bytes; })
      .def_ro("lost", &RepairReport::lost)
      .def_ro("notes", &RepairReport::notes);
  const auto run = [](const std::filesystem::path& file, const std::filesystem::path& out,
                      const std::filesystem::path& like,
                      bool force) { return repair(file, out, {.like = like, .force = force}); };
  m.def("repair", run, nb::arg("file"), nb::arg("out"), nb::arg("like"), nb::arg("force"),
        Released());
}

// `progress` is called with bytes done and in all, and ends the conversion by what it raises. So
// does a signal whose handler raises, as that of Ctrl-C.
ConvertReport convert_with(const std::filesystem::path& in, const std::filesystem::path& out,
                           ConvertOptions options, nb::object progress) {
  std::optional<nb::python_error> raised;
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    nb::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      if (!progress.is_none()) progress(done, total);
      return true;
    } catch (nb::python_error& error) {
      raised.emplace(std::move(error));
      return false;
    }
  };
  try {
    nb::gil_scoped_release release;
    return convert(in, out, options);
  } catch (const Error&) {
    if (raised) throw std::move(*raised);
    throw;
  }
}

void bind_convert(nb::module_& m) {
  nb::enum_<FileFormat>(m, "FileFormat")
      .value("torch", FileFormat::torch)
      .value("safetensors", FileFormat::safetensors)
      .value("dcp", FileFormat::dcp);
  nb::class_<ConvertOptions>(m, "ConvertOptions")
      .def(nb::init<>())
      .def_rw("to", &ConvertOptions::to)
      .def_rw("only", &ConvertOptions::only)
      .def_rw("rename", &ConvertOptions::rename)
      .def("set_dtype",
           [](ConvertOptions& options, const std::string& name) {
             options.dtype = dtype_from_name(name);
             if (!options.dtype) throw Error(ErrorCode::invalid, "no dtype is called " + name);
           })
      .def_rw("strip_optimizer", &ConvertOptions::strip_optimizer)
      .def_rw("rest", &ConvertOptions::rest)
      .def_rw("max_shard_size", &ConvertOptions::max_shard_size)
      .def_rw("force", &ConvertOptions::force);
  nb::class_<ConvertReport>(m, "ConvertReport")
      .def_ro("path", &ConvertReport::path)
      .def_ro("rest", &ConvertReport::rest)
      .def_ro("format", &ConvertReport::format)
      .def_ro("tensors", &ConvertReport::tensors)
      .def_ro("bytes", &ConvertReport::bytes)
      .def_ro("left_out", &ConvertReport::left_out);
  m.def("convert", &convert_with, nb::arg("in_"), nb::arg("out"), nb::arg("options"),
        nb::arg("progress").none());
}

}  // namespace

void bind_files(nb::module_& m) {
  bind_info(m);
  bind_verify(m);
  bind_repair(m);
  bind_convert(m);
  nb::class_<CheckpointFile>(m, "CheckpointFile")
      .def_static("open",
                  nb::overload_cast<const std::filesystem::path&, bool>(&CheckpointFile::open),
                  nb::arg("path"), nb::arg("allow_opaque") = false, Released())
      .def_static("open_bytes", &open_bytes, nb::arg("bytes"), nb::arg("name"),
                  nb::arg("allow_opaque") = false)
      .def_prop_ro("name", &CheckpointFile::name)
      .def_prop_ro("size", &CheckpointFile::size)
      .def_prop_ro("format", &CheckpointFile::format)
      .def_prop_ro("value", [](const CheckpointFile& file) { return file.value(); })
      .def_prop_ro("info", [](const CheckpointFile& file) { return file.info(); })
      .def_prop_ro("metadata", &CheckpointFile::metadata)
      .def_prop_ro("ranks", &CheckpointFile::ranks)
      .def("has_checksums", &CheckpointFile::has_checksums)
      .def("read_all", &read_all, nb::arg("value"), nb::arg("allocate"))
      .def("map_all", &CheckpointFile::map_all, nb::arg("value"), nb::arg("verify"), Released());
  nb::class_<Entry>(m, "Entry")
      .def_prop_ro("name", [](const Entry& entry) { return text_for_people(entry.name); })
      .def_ro("value", &Entry::value);
  m.def("entries", &entries, nb::arg("file"), nb::arg("pattern"), Released());
  m.def("save", &save, nb::arg("path"), nb::arg("state"), Released());
  m.def("write_to", nb::overload_cast<nb::callable, const Value&, const CheckpointInfo&>(&write_to),
        nb::arg("sink"), nb::arg("state"), nb::arg("info"));
  m.def("select", &select, nb::arg("state"), nb::arg("keys"), Released());
}

}  // namespace perdure::python
