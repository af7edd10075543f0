// What does not fit in a restore, and the table that says so.
#pragma once

#include <array>
#include <cstdint>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::engine {

// The shape of what is no tensor.
inline const std::vector<std::int64_t> kNoTensor = {-1};

enum class Mismatch { shape, dtype, missing, unexpected };

// One thing that is in the file or here, or both.
struct Misfit {
  Mismatch what;
  std::string name;     // "model.fc.weight"; of an unexpected one the file's name, renamed
  std::string in_file;  // "float32 [3, 4]", or what else is to be said of it
  std::string here;
  std::vector<std::int64_t> shape = kNoTensor;  // of the tensor, where it is on one side only
  bool castable = false;                        // a wrong dtype that `cast` would convert
};

// What `here` says of an entry of the file that nothing is registered to take.
inline constexpr std::string_view kNotRegistered = "not registered";

// "float32 [3, 4]" of a tensor, "a dict" of another value.
std::string describe(const Value& value);

// Name, what, in the file, here, one below the other; of each kind the first 20, and how many more.
std::string table_of(const std::vector<Misfit>& misfits);

}  // namespace perdure::engine
