// The ranks of torch.distributed, by a store of its.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <perdure/error.hpp>
#include <perdure/ranks.hpp>

namespace perdure::python {

// `store` is a torch.distributed.Store of which this process may use a connection by itself: who
// waits in it keeps others out.
std::shared_ptr<Ranks> ranks_from(nanobind::object store, std::size_t rank, std::size_t size);

}  // namespace perdure::python
