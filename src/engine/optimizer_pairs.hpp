// The parameters of an optimizer in a file and those of one here, and which is which.
#pragma once

#include <cstddef>
#include <optional>
#include <perdure/optimizer_match.hpp>
#include <string>
#include <vector>

namespace perdure::engine {

struct OptimizerPairs {
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  using Shape = std::vector<std::int64_t>;

  // Numbered through all groups of its side.
  struct Parameter {
    std::size_t group = 0;
    std::string name = {};            // "" where it has none
    std::optional<Shape> shape = {};  // in a file only its state shows it
    std::size_t partner = kNone;      // on the other side
  };
  struct Group {
    std::size_t size = 0;
    // On the other side: the group that this one is continued by (or continues), and the one that
    // most of its parameters went to (or came from).
    std::size_t counterpart = kNone;
    std::size_t mostly = kNone;
    bool continued = false;  // of one here: it is one group of the file, and has no part of another
  };
  struct Side {
    std::vector<Group> groups;
    std::vector<Parameter> params;
  };

  Side file, own;
  Value::Items ids;          // the keys of the file's parameters in its "state"
  bool by_position = false;  // names are not known on both sides

  // Of a parameter here.
  bool has_other_shape(const Parameter& param) const;
  bool keeps_state(const Parameter& param) const;
  bool is_moved(const Parameter& param) const;

  std::size_t survivors() const;
  // Whether no parameter came, went or moved, and none has another shape.
  bool fit() const;
};

// Error(invalid) where `in_file` is no optimizer's state_dict.
OptimizerPairs pair_parameters(const OptimizerOutline& own, const Value& in_file,
                               const CheckpointInfo::Optimizer& recorded);

}  // namespace perdure::engine
