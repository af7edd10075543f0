// What differs between two checkpoints.
//
// Both files are streamed once, side by side, with every checksum compared, in bounded memory
// (under 200 MB) whatever their size. May be called from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <vector>

namespace perdure {

// How far two tensors of one shape are apart, element by element; of complex ones by their parts.
// Two NaN of equal bits, and two infinities of one sign, are not apart.
struct Distance {
  std::uint64_t elements = 0;
  std::uint64_t changed = 0;  // other bits; where the dtypes differ, another value
  // |a - b| > atol + rtol |b|, or NaN on one side only; of complex ones, parts.
  std::uint64_t beyond = 0;
  double max_absolute = 0;  // |a - b|; infinite beside an infinity; NaN does not count
  double max_relative = 0;  // |a - b| / max(|a|, |b|)
  // How many floats of the dtype lie between them, at most. Only where both have the same floating
  // (or complex) dtype of 8 bits and more.
  std::optional<std::uint64_t> max_ulp;
  // Of the finite elements as two vectors. Nothing where one is all zeros, or nothing is finite.
  std::optional<double> cosine;
};

struct Difference {
  enum class What {
    added,    // only in the second file
    removed,  // only in the first
    value,    // another plain value, or another kind of thing
    tensor,   // another dtype, another shape, or other elements
  };
  What what = What::value;
  std::string name;    // keys joined with dots, as the first file has it
  std::string before;  // "0.5", "float32 [3, 4]"; "" where it was added
  std::string after;
  std::optional<Distance> distance;  // of tensors whose elements can be compared
};

struct DiffReport {
  std::string path_a, path_b;
  std::vector<Difference> differences;  // in the order of the first file, what was added at the end
  std::uint64_t tensors = 0;            // that are in both
  std::uint64_t by_checksum = 0;        // of these, equal by their checksums, and not read
  std::uint64_t within_tolerance = 0;   // of these, changed, and taken as equal
  std::uint64_t values = 0;             // plain values that are in both
  // "module." or "_orig_mod.", where names of only one file have it, and those that match nothing
  // else match without. They are compared then.
  std::string prefix;
  bool prefix_in_second = false;
  bool equal() const { return differences.empty() && prefix.empty(); }
};

struct DiffOptions {
  // Only what is called so: matches as a whole or up to a dot; * stands for any characters, ? for
  // one. "": all. Error(not_found) where it matches nothing in either file.
  std::string pattern = {};
  // A tensor whose elements all have |a - b| <= atol + rtol |b| counts as equal, as for
  // torch.allclose(a, b, rtol, atol, equal_nan=True), of complex ones for torch.view_as_real of
  // them. With 0 and 0, equal means equal bits.
  double atol = 0, rtol = 0;
  // Read also tensors of the same dtype, shape and strides whose storages have the same size and
  // CRC-32, which count as equal otherwise. One change in 4,294,967,296 leaves a CRC-32 as it was.
  bool full = false;
  // Called with the bytes that were read since the call before, by several threads at once. What it
  // throws ends the reading and is thrown.
  std::function<void(std::uint64_t bytes)> progress = {};
};

// What is compared is what the files mean: keys are matched by name (joined with dots, so that 0
// and "0" are one key), and tensors element by element, whatever their strides and storages are.
// Tuples are lists, OrderedDicts dicts; requires_grad, attributes of dicts and what is shared do
// not count. An int is no float: 1 and 1.0 differ. Errors: as those of load, but things that are no
// plain data do not matter; unsupported where a state shares so much that comparing it would not
// end.
DiffReport diff(const std::filesystem::path& a, const std::filesystem::path& b,
                const DiffOptions& options = {});
DiffReport diff(const CheckpointFile& a, const CheckpointFile& b, const DiffOptions& options = {});

// The bytes that it will read, about, for a progress display.
std::uint64_t diff_size(const CheckpointFile& a, const CheckpointFile& b,
                        const DiffOptions& options = {});

}  // namespace perdure
