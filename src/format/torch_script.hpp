// TorchScript archives: torch.jit.save, and torch::save of LibTorch. A zip as torch.save makes it,
// with the code of the modules and their constants beside data.pkl.
#pragma once

#include "format/contents.hpp"
#include "format/zip_records.hpp"

namespace perdure::format {

// Value, storages and places of `contents`: the tree of the modules' attributes, each module a dict
// with its class in the attribute `_class`, and what the code uses as constants under the key
// "(constants)", where there are any. The code is neither read nor run.
void read_script_structure(const ZipRecords& zip, bool allow_opaque, Contents& contents);

}  // namespace perdure::format
