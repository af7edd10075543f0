#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <tuple>

#include "bindings.hpp"
#include "engine/dcp_pieces.hpp"
#include "engine/rank_file.hpp"
#include "format/coding.hpp"
#include "io/system.hpp"
#include "storage/new_directory.hpp"

namespace nb = nanobind;

namespace perdure::python {

namespace {

namespace fs = std::filesystem;
using Released = nb::call_guard<nb::gil_scoped_release>;
using storage::IfExists;
using storage::LocalStorage;
using storage::NewDirectory;

std::vector<std::tuple<std::uint64_t, std::uint64_t>> write_rank_file(
    const fs::path& folder, const std::string& name, std::vector<engine::RankItem> items,
    std::uint64_t staging) {
  const std::vector<engine::PlacedItem> places = engine::place_items(items);
  const auto files = LocalStorage::open_folder(io::real_system(), folder);
  engine::write_rank_file(*files, name, items, places, staging);
  std::vector<std::tuple<std::uint64_t, std::uint64_t>> written;
  for (const engine::PlacedItem& place : places) written.emplace_back(place.offset, place.length);
  return written;
}

void write_small_file(NewDirectory& directory, const std::string& name, const nb::bytes& content) {
  const std::string_view text(content.c_str(), content.size());
  nb::gil_scoped_release release;
  engine::write_text(directory.files(), name, text);
}

using Box = std::tuple<std::size_t, std::size_t, std::vector<std::int64_t>,
                       std::vector<std::int64_t>, std::uintptr_t>;

void read_boxes(engine::DcpParts& parts, const std::vector<Box>& boxes) {
  std::vector<engine::BoxRead> reads;
  for (const auto& [item, chunk, offsets, sizes, address] : boxes)
    reads.push_back({item, chunk, offsets, sizes, reinterpret_cast<std::byte*>(address)});
  engine::read_boxes(parts, reads);
}

nb::bytes read_value(engine::DcpParts& parts, std::size_t item) {
  std::string bytes;
  {
    nb::gil_scoped_release release;
    bytes = engine::read_value_bytes(parts, parts.metadata().items.at(item));
  }
  return nb::bytes(bytes.data(), bytes.size());
}

}  // namespace

void bind_dcp(nb::module_& m) {
  nb::class_<engine::RankItem>(m, "RankItem")
      .def("__init__", [](engine::RankItem* self, std::string name, const Value& value, bool raw) {
        new (self) engine::RankItem{std::move(name), value, raw};
      });
  m.def("write_rank_file", &write_rank_file, nb::arg("folder"), nb::arg("name"), nb::arg("items"),
        nb::arg("staging"), Released());
  nb::class_<NewDirectory>(m, "NewDirectory")
      .def(
          "__init__",
          [](NewDirectory* self, const fs::path& path, bool replace) {
            new (self)
                NewDirectory(io::real_system(), path, replace ? IfExists::replace : IfExists::fail);
          },
          Released())
      .def_prop_ro("path", &NewDirectory::path)
      .def("write", &write_small_file, nb::arg("name"), nb::arg("content"))
      .def("commit", &NewDirectory::commit, Released());
  nb::class_<format::DcpPlace>(m, "DcpPlace")
      .def_ro("file", &format::DcpPlace::file)
      .def_ro("offset", &format::DcpPlace::offset)
      .def_ro("length", &format::DcpPlace::length);
  nb::class_<format::DcpChunk>(m, "DcpChunk")
      .def_ro("offsets", &format::DcpChunk::offsets)
      .def_ro("sizes", &format::DcpChunk::sizes)
      .def_ro("place", &format::DcpChunk::place);
  nb::class_<format::DcpItem>(m, "DcpItem")
      .def_ro("name", &format::DcpItem::name)
      .def_ro("path", &format::DcpItem::path)
      .def_ro("is_tensor", &format::DcpItem::is_tensor)
      .def_prop_ro("dtype", [](const format::DcpItem& item) { return dtype_name(item.dtype); })
      .def_ro("shape", &format::DcpItem::shape)
      .def_ro("chunks", &format::DcpItem::chunks);
  nb::class_<engine::DcpParts>(m, "DcpParts")
      .def(nb::init<const fs::path&, const std::string&>(), nb::arg("directory"),
           nb::arg("metadata") = ".metadata", Released())
      .def_prop_ro("files", [](const engine::DcpParts& parts) { return parts.metadata().files; })
      .def_prop_ro("items", [](const engine::DcpParts& parts) { return parts.metadata().items; })
      .def("read_boxes", &read_boxes, nb::arg("boxes"), Released())
      .def("read_value", &read_value, nb::arg("item"));
}

}  // namespace perdure::python
