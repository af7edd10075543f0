#include "engine/save_file.hpp"

#include <chrono>
#include <cstdint>
#include <perdure/perdure.hpp>

#include "engine/file_drain.hpp"
#include "storage/local_storage.hpp"

namespace perdure::engine {
namespace {

// The thread that copies is the one that writes, so this is what may be on its way to the disk and
// a little more.
constexpr std::uint64_t kStagingBytes = std::uint64_t{32} << 20;

}  // namespace

void write_file(storage::Storage& storage, const std::string& name, const format::Encoder& encoder,
                storage::IfExists if_exists, const std::function<void(std::uint64_t)>& progress) {
  Arena arena(kStagingBytes, {});
  arena.reserve(encoder.file_size());
  StagedFile file(encoder, arena, false);
  const auto replacement = storage.create(name, encoder.file_size(), if_exists);
  drain(file, encoder, *replacement, progress);
  replacement->commit();
}

double now_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void sign(CheckpointInfo& info) {
  info.created = now_since_1970();
  info.writer = "perdure " PERDURE_VERSION;
}

// The state is planned after the path was looked at and before anything is created: neither kind of
// mistake leaves a trace.
void save_file(io::System& system, const std::filesystem::path& path, const Value& state) {
  const storage::FileTarget target = storage::resolve_target(system, path);
  CheckpointInfo info;
  sign(info);
  const format::Encoder encoder(state, info);
  target.folder->collect_debris_of(target.name);
  write_file(*target.folder, target.name, encoder, storage::IfExists::replace);
}

}  // namespace perdure::engine

namespace perdure {

void save(const std::filesystem::path& path, const Value& state) {
  engine::save_file(io::real_system(), path, state);
}

}  // namespace perdure
