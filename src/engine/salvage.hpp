// repair, without the files: what can be had from a damaged source, and the report on it.
#pragma once

#include <memory>
#include <perdure/file.hpp>
#include <perdure/repair.hpp>

namespace perdure::engine {

struct Salvage {
  Value state;  // with all its bytes
  CheckpointInfo info;
  bool has_info = false;  // `info` is the file's own
  RepairReport report;
};

// As repair says of it. `like` may be null; NamesLost where it would help.
Salvage salvage(std::shared_ptr<const Source> source, const std::shared_ptr<const Source>& like);

}  // namespace perdure::engine
