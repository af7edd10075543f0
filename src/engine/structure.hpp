// Where the tensors of a damaged file get their names, dtypes and shapes from.
#pragma once

#include <memory>
#include <perdure/file.hpp>
#include <string>
#include <vector>

#include "engine/remains.hpp"
#include "format/decoder.hpp"

namespace perdure::engine {

struct Structure {
  enum class Origin {
    pickle,  // the file's own data.pkl: all values are there
    index,   // its .perdure/index: tensors alone, all containers are dicts
    like,    // another file: what is no tensor is not this file's
  };
  Origin origin = Origin::pickle;
  format::Decoded decoded;  // may hold Kind::opaque
  std::string note;         // what the user should know of it, or ""
};

// Nothing in the file says what its tensors are called, and no other file was given.
class NamesLost : public Error {
 public:
  using Error::Error;
};

// The first of the three that is whole; `remains` learns the sizes of its storages. `like` may be
// null; Error(invalid) where it is needed and has other records than `remains`.
Structure structure_of(Remains& remains, const std::shared_ptr<const Source>& like);

}  // namespace perdure::engine
