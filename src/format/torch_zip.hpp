// The zip format of torch.save since 1.6; perdure's own, which is one with two more records
// (docs/format.md); and TorchScript archives, which are one with the code of the modules.
#pragma once

#include "format/contents.hpp"
#include "format/decoder.hpp"
#include "format/zip_records.hpp"

namespace perdure::format {

Contents read_torch_zip(ZipRecords zip, bool allow_opaque);

// Value, storages and places of `contents`, from data.pkl: for who must go on where another part is
// damaged.
void read_structure(const ZipRecords& zip, bool allow_opaque, Contents& contents);
// What one of the pickles in it holds; its storages are added to those that are there.
Value read_pickle_record(const ZipRecords& zip, const PickleOrigin& origin, bool allow_opaque,
                         Contents& contents);

}  // namespace perdure::format
