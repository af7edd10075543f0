// The one way in which perdure writes: planned, reserved, written, committed.
#pragma once

#include <perdure/file.hpp>
#include <string>

#include "format/encoder.hpp"
#include "io/system.hpp"
#include "storage/storage.hpp"

namespace perdure::engine {

// When it returns, `name` has what `encoder` gives, durably. When it throws, see
// Replacement::commit.
void write_file(storage::Storage& storage, const std::string& name, const format::Encoder& encoder,
                storage::IfExists if_exists);

double now_since_1970();  // seconds, UTC, by this machine's clock
// Fills in what every writer says of itself: writer, created.
void sign(CheckpointInfo& info);

// perdure::save, through `system`.
void save_file(io::System& system, const std::filesystem::path& path, const Value& state);

}  // namespace perdure::engine
