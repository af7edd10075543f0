// What the numbers in a checkpoint are like: NaN, infinities, zeros, extremes, means and norms, of
// each tensor and of groups of them; and an optimizer's momentum beside the weights it belongs to.
//
// The file is streamed once, with every checksum compared, in a few tens of MB of memory whatever
// its size. May be called from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <perdure/file.hpp>
#include <perdure/value.hpp>
#include <string>
#include <vector>

namespace perdure {

// min, max, mean, rms and norm are of the finite numbers: what is NaN or infinite is counted, and
// does not drown the rest. They are None where there is no finite number, and for the dtypes of
// bits without a meaning as numbers (bits8, bits16, ...), of which only zeros are counted.
//
// Of integers and bool, min and max are exact ints. Of complex numbers, min, max, rms and norm are
// of the magnitudes, mean is complex, and a number with a part that is NaN (infinite) counts as NaN
// (as +Inf). float4_e2m1fn_x2 has two numbers in an element; both count. An element that a view
// repeats (a stride of 0, or less than the size) counts as often as it is there.
struct Figures {
  std::uint64_t elements = 0;
  std::uint64_t nan = 0;
  std::uint64_t pos_inf = 0;
  std::uint64_t neg_inf = 0;
  std::uint64_t zeros = 0;
  Value min;   // int or float
  Value max;   // int or float
  Value mean;  // float or complex
  Value rms;   // float: the root of the mean square
  Value norm;  // float: the root of the sum of squares (L2)
};

struct TensorStats {
  std::string name;  // keys joined with dots: "optimizer.state.0.exp_avg"
  KeyPath path;      // the same as keys
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  Figures figures;
  // The name of an earlier tensor that is the same elements of the same storage (tied weights), or
  // "". Groups count them once.
  std::string same_as;
  // Of an optimizer's state: the name of the parameter that it belongs to, as far as it is known
  // from .perdure/checkpoint.json, from param_names in the groups, or because the state goes by
  // names; that of its tensor where the file has it ("model.fc.weight"), of the parameter where
  // not.
  std::string parameter;
  std::string problem;  // why there are no figures: "the file has no data for it", or ""
};

// All tensors whose names begin alike, up to a dot.
struct GroupStats {
  std::string name;       // "model", "model.layers", "model.layers.0"
  std::size_t depth = 1;  // how many parts the name has
  std::uint64_t tensors = 0;
  Figures figures;  // min and max are floats
};

// An optimizer's state of one parameter.
struct MomentumStats {
  std::string parameter;       // name, see TensorStats::parameter
  std::string optimizer;       // "optimizer"
  std::size_t weight = kNone;  // in `tensors`; kNone where the file (or the pattern) lacks it
  std::vector<std::size_t> momentum;  // in `tensors`: what has the parameter's size, exp_avg, ...
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
};

struct StatsReport {
  std::string path;
  std::uint64_t bytes = 0;              // read
  std::vector<TensorStats> tensors;     // in the order of the file's tree
  std::vector<GroupStats> groups;       // of two tensors and more, in the order of their first
  std::vector<MomentumStats> momentum;  // by optimizer, in the order of its parameters
};

struct StatsOptions {
  // Only tensors whose name it matches as a whole or up to a dot; * stands for any characters, ?
  // for one. "": all. Error(not_found) where it matches none.
  std::string pattern = {};
  // Called with the bytes that were read since the call before, by several threads at once. What it
  // throws ends the reading and is thrown.
  std::function<void(std::uint64_t bytes)> progress = {};
};

// Errors: as those of load, but things in the file that are no plain data do not matter;
// unsupported where a view repeats its elements so often that counting them would not end.
StatsReport stats(const std::filesystem::path& path, const StatsOptions& options = {});
StatsReport stats(const CheckpointFile& file, const StatsOptions& options = {});

// The bytes that it will read, for a progress display.
std::uint64_t stats_size(const CheckpointFile& file, const StatsOptions& options = {});

}  // namespace perdure
