#include "io/priority.hpp"

#include <sys/resource.h>

namespace perdure::io {
namespace {

// By the kernel's table, 110 shares of a processor beside the 1024 of a thread that trains; the
// lowest priority has 15, which may keep a save on a busy machine from ending before the next one.
constexpr int kNice = 10;

}  // namespace

// On Linux a nice value is of a thread, and 0 is the calling one. Who was started at a lower
// priority keeps it.
void lower_priority() noexcept {
  if (::getpriority(PRIO_PROCESS, 0) < kNice) ::setpriority(PRIO_PROCESS, 0, kNice);
}

}  // namespace perdure::io
