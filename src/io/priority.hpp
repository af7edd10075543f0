// The scheduling of threads that work behind the training.
#pragma once

namespace perdure::io {

// From now on the calling thread gets what others leave of the processors, and a little more. Where
// the system refuses, nothing happens.
void lower_priority() noexcept;

}  // namespace perdure::io
