// What a CheckpointManager and an AsyncSaver have in common.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace perdure::engine {

// Error(invalid) where it is neither 0 nor enough.
void require_staging(std::uint64_t staging_bytes);
// How many threads copy a state.
unsigned copy_threads();
// On standard error.
void print_warning(const std::string& text);
// What an exception says.
std::string text_of(const std::exception_ptr& error);

}  // namespace perdure::engine
