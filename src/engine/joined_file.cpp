#include "engine/joined_file.hpp"

namespace perdure::engine {

std::optional<JoinedFile> open_joined(const std::filesystem::path&, bool) { return std::nullopt; }

}  // namespace perdure::engine
