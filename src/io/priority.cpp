#include "io/priority.hpp"

#include <sys/resource.h>

namespace perdure::io {
namespace {

// A tenth of the weight of a thread that trains. With 19, a busy machine would leave a save unable
// to end before the next one.
constexpr int kNice = 10;

}  // namespace

// On Linux a nice value is of a thread, and 0 is the calling one.
void lower_priority() noexcept { ::setpriority(PRIO_PROCESS, 0, kNice); }

}  // namespace perdure::io
