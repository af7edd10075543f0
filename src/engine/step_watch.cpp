#include "engine/step_watch.hpp"

#include "engine/file_records.hpp"

namespace perdure::engine {
namespace {

constexpr std::size_t kMostNames = 5;

}  // namespace

StepWatch::StepWatch(const TrainingState& state, const Value& tree) {
  for (const TrainingState::Entry& entry : state.entries())
    if (entry.versions)
      watched_.push_back({entry.name, entry.versions, entry.version_name, entry.versions(),
                          tree.as_dict().at(entry.name)});
}

std::vector<std::string> StepWatch::changed() const {
  std::vector<std::string> names;
  for (const Watched& watched : watched_) {
    const auto now = watched.versions();
    if (now.size() != watched.before.size()) names.push_back(watched.entry + ": other tensors");
    for (std::size_t i = 0; i < std::min(now.size(), watched.before.size()); ++i)
      if (now[i] != watched.before[i] && names.size() < kMostNames)
        names.push_back(name_of(watched, i));
  }
  return names;
}

std::string StepWatch::name_of(const Watched& watched, std::size_t place) {
  if (watched.name) return watched.entry + ": " + watched.name(place);
  std::string name = watched.entry;
  std::size_t at = 0;
  for_each_tensor(watched.tree, [&](const KeyPath& path, const Tensor& tensor) {
    if (tensor.liveness != Liveness::stepped || at++ != place) return;
    KeyPath whole{Value(watched.entry)};
    whole.insert(whole.end(), path.begin(), path.end());
    name = format_path(whole);
  });
  return name;
}

}  // namespace perdure::engine
