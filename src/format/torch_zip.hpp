// The zip format of torch.save since 1.6, and perdure's own, which is one with two more records
// (docs/format.md).
#pragma once

#include "format/contents.hpp"
#include "format/zip_records.hpp"

namespace perdure::format {

// The newest of the checks comes first: a newer format is told as such and not as damage.
Contents read_torch_zip(ZipRecords zip, bool allow_opaque);

// Value, storages and places of `contents`, from data.pkl: for who must go on where another part is
// damaged. Takes the records where they are in `zip`.
void read_structure(const ZipRecords& zip, bool allow_opaque, Contents& contents);

}  // namespace perdure::format
