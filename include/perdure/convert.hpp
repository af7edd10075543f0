// Converting checkpoints from one format into another, and into smaller ones.
//
// What is read: everything that CheckpointFile::open reads, and a run directory (its newest whole
// checkpoint). What is written: a PyTorch file, safetensors (one file, or several with an index),
// and a directory that torch.distributed.checkpoint (DCP) loads. Tensors stream through, block by
// block: a file of any size takes about 100 MB of memory. Only what is converted in a way that
// needs all of a tensor at once (one that does not lie in C order, into a format that has no other)
// is in memory whole, one tensor at a time.
//
// What is written is complete and durable before it gets its name, a directory as a whole: when
// convert throws, nothing is there, or what was there before. May be called from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <utility>
#include <vector>

namespace perdure {

enum class FileFormat { torch, safetensors, dcp };

struct ConvertOptions {
  // Without it, the ending of `out` says it: .pt, .pth, .bin and .ckpt for PyTorch's, .safetensors
  // for safetensors; a name without an ending for a DCP directory. Any other is Error(invalid).
  std::optional<FileFormat> to = {};
  // Only what has one of these names: keys joined by dots, "model", "model.fc.weight"; all that is
  // below goes with it. "*" stands for any run of characters. Empty: all.
  std::vector<std::string> only = {};
  // From names to names, before which `only` has chosen: {"model.*", "*"}. The first that fits a
  // name counts. A new name goes into the dict whose name it begins with, or to the top.
  std::vector<std::pair<std::string, std::string>> rename = {};
  // Floating-point tensors (not complex ones) become this: float64, float32, float16 or bfloat16;
  // rounded to the nearest, ties to even.
  std::optional<DType> dtype = {};
  // Leaves out the state of optimizers: dicts with "state" and "param_groups".
  bool strip_optimizer = false;
  // Of safetensors: what they cannot hold (numbers, lists, a second tensor in the same memory) goes
  // into a PyTorch file beside `out`, x.rest.pt for x.safetensors. Otherwise it is Error(invalid).
  bool rest = false;
  // Of safetensors: `out` becomes a directory of files of no more than so many bytes, as far as no
  // tensor is larger, and model.safetensors.index.json. 0: one file.
  std::uint64_t max_shard_size = 0;
  bool force = false;  // replaces `out` where it exists
  // Called with bytes done and bytes in all, by the calling thread. Where it returns false, convert
  // ends with Error(cancelled) and leaves nothing.
  std::function<bool(std::uint64_t done, std::uint64_t total)> progress = {};
};

struct ConvertReport {
  std::filesystem::path path;  // what was written
  std::filesystem::path rest;  // and beside it; "": nothing
  FileFormat format = FileFormat::torch;
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;            // of them, as they are written
  std::vector<std::string> left_out;  // names, by strip_optimizer
};

// Errors: those of CheckpointFile::open and save; corrupt where a checksum of what is read is
// wrong; invalid where the format that is wanted cannot hold something (named with its place), for
// names that are not there, and where `out` exists or is `in`.
ConvertReport convert(const std::filesystem::path& in, const std::filesystem::path& out,
                      const ConvertOptions& options = {});

}  // namespace perdure
