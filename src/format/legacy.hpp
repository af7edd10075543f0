// The format of torch.save before PyTorch 1.6, and of _use_new_zipfile_serialization=False since:
// five pickles and then the bytes of the storages. There are no checksums.
#pragma once

#include "format/contents.hpp"

namespace perdure::format {

// Error(corrupt) with the offset where the parts contradict each other: the storages that the
// object names, the list of them, and their sizes.
Contents read_legacy(const Source& source, bool allow_opaque);

}  // namespace perdure::format
