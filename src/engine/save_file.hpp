// The one way in which perdure writes: planned, reserved, written, committed.
#pragma once

#include <cstdint>
#include <functional>
#include <perdure/file.hpp>
#include <string>

#include "format/encoder.hpp"
#include "io/system.hpp"
#include "storage/storage.hpp"

namespace perdure::engine {

// When it returns, `name` has what `encoder` gives, durably. When it throws, see
// Replacement::commit.
// `progress` is told the bytes so far, and may throw.
void write_file(storage::Storage& storage, const std::string& name, const format::Encoder& encoder,
                storage::IfExists if_exists,
                const std::function<void(std::uint64_t)>& progress = {});

double now_since_1970();  // seconds, UTC, by this machine's clock
// Fills in what every writer says of itself: writer, created.
void sign(CheckpointInfo& info);

// perdure::save, through `system`.
void save_file(io::System& system, const std::filesystem::path& path, const Value& state);

}  // namespace perdure::engine
