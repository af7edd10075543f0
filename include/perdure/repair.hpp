// What can still be had from a damaged checkpoint: every tensor whose checksum is right.
//
// Nothing is saved that the damaged file itself does not prove. May be called from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace perdure {

struct RepairOptions {
  // Another checkpoint that the same program wrote, older or newer. Where a file of perdure's was
  // cut off, the names, dtypes and shapes of its tensors are gone with its end; they are taken from
  // this one, and nothing else is. Not looked at where the file still has its own.
  std::filesystem::path like = {};
  bool force = false;  // replace `out` where it exists
};

// A value that is in the file no more.
struct Lost {
  // state['model']['fc.weight']. Of a dict or list without tensors it stands for all that is in it;
  // ".perdure/checkpoint.json" is what the checkpoint said of itself (step, metrics, ...).
  std::string path;
  std::string dtype;                // "float32"; "" of what is no tensor
  std::vector<std::int64_t> shape;  // of a tensor
  std::string why;                  // a sentence
};

struct RepairReport {
  struct Saved {
    std::uint64_t tensors = 0;
    std::uint64_t bytes = 0;  // of their storages
  };
  std::string path;
  Saved saved;
  std::vector<Lost> lost;          // in the order of the state
  std::vector<std::string> notes;  // what was damaged and could be made good, and from what
};

// Saves what is whole in `file`, any file that perdure::load reads or would have read, at `out`, as
// perdure::save does. What is lost is left out of its dict; in a list or tuple None stands in its
// place. All else is as it was to the last bit, and what shared a storage still does. With
// .perdure/ index a tensor is lost only where a damaged block of a few MiB is its own, else where
// its storage is damaged.
//
// What is saved is in memory as a whole, as by perdure::load. Bytes that the disk cannot read count
// as damaged.
//
// `file` is only read; `out` is made where something was saved, and never over `file`. Errors:
// corrupt (there is nothing to save, or tensors have lost their names: `like` would help, and a
// checkpoint beside the file that could serve is named), unsupported (as for load; and files
// without checksums), invalid (`out` exists, or is one of the other two files; `like` has another
// structure), and those of save.
RepairReport repair(const std::filesystem::path& file, const std::filesystem::path& out,
                    const RepairOptions& options = {});

}  // namespace perdure
