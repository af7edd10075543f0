#include "engine/save_file.hpp"

#include <chrono>
#include <perdure/perdure.hpp>

#include "storage/local_storage.hpp"

namespace perdure::engine {

void write_file(storage::Storage& storage, const std::string& name, const format::Encoder& encoder,
                storage::IfExists if_exists) {
  const auto replacement = storage.create(name, encoder.file_size(), if_exists);
  std::uint64_t end = 0;
  encoder.write([&](ConstBytes bytes) {
    replacement->append(bytes);
    replacement->settle(end += bytes.size());
  });
  replacement->commit();
}

void sign(CheckpointInfo& info) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  info.created = now.count();
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
