// Looking into a checkpoint: what it holds, by name, without reading its tensors.
#pragma once

#include <perdure/file.hpp>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure {

// A tensor, a plain value, an object that is no plain data, a container without items, or a
// sequence of plain values, which is one value of its own.
struct Entry {
  std::string name;  // keys joined with dots: "optimizer.state.0.exp_avg"; "(root)" for a file that
                     // is one value; cut where it passes 1,000 bytes
  KeyPath path;      // what `name` is of, whatever is in the keys
  Value value;       // as in file.value(): tensors of one storage share it
};

// In the order of the file; what stands in several places has an entry for each. `pattern`: only
// names that it matches as a whole or up to a dot; * stands for any characters, ? for one. A file
// that was opened with allow_opaque can be looked into whatever is in it. Errors: unsupported (it
// shares so much that the list would not end). May be called by several threads at once.
//
//   const CheckpointFile file = CheckpointFile::open("model.pt", /*allow_opaque=*/true);
//   for (const Entry& entry : entries(file, "model.*.weight"))
//     std::cout << entry.name << ' ' << repr(entry.value) << '\n';
std::vector<Entry> entries(const CheckpointFile& file, std::string_view pattern = {});

}  // namespace perdure
