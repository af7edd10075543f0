// All of perdure that needs no LibTorch. The adapter for LibTorch is perdure/torch.hpp.
#pragma once

#define PERDURE_VERSION "0.1.0"

#include <perdure/async_saver.hpp>
#include <perdure/checkpoint_manager.hpp>
#include <perdure/convert.hpp>
#include <perdure/diff.hpp>
#include <perdure/error.hpp>
#include <perdure/file.hpp>
#include <perdure/inspect.hpp>
#include <perdure/npy.hpp>
#include <perdure/ranks.hpp>
#include <perdure/repair.hpp>
#include <perdure/state.hpp>
#include <perdure/stats.hpp>
#include <perdure/value.hpp>
