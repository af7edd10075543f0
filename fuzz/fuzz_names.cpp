// Arbitrary text as the name of a file in a run directory: what is taken for a name of ours is one
// that we would have written.
#include "engine/checkpoint_name.hpp"
#include "require.hpp"
#include "storage/temporary_file.hpp"

namespace {

using namespace perdure;

void check_checkpoint(const std::string& name) {
  const auto parsed = engine::parse_checkpoint_name(name);
  const auto damaged = engine::parse_damaged_name(name);
  fuzz::require(!parsed || engine::format(*parsed) == name, "not the name that it was made of");
  fuzz::require(!parsed || (parsed->step >= 0 && parsed->generation > 0 &&
                            parsed->generation <= engine::kMaxGeneration),
                "numbers that no run has");
  fuzz::require(!parsed || !damaged, "a checkpoint and set aside");
  fuzz::require(!damaged || name.starts_with(engine::format(*damaged) + ".damaged"),
                "not set aside");
  const std::uint64_t expected = parsed ? parsed->generation : damaged ? damaged->generation : 0;
  fuzz::require(engine::generation_in(name) == expected, "another generation");
  if (parsed) {
    const auto aside = engine::parse_damaged_name(name + ".damaged-2");
    fuzz::require(aside && *aside == *parsed, "setting aside changes it");
  }
}

void check_temporary(const std::string& name) {
  const auto behind = storage::name_of_temporary(name);
  if (!behind) return;
  fuzz::require(name.starts_with("." + *behind + ".") && name.ends_with(".tmp"), "not temporary");
  fuzz::require(!engine::parse_checkpoint_name(name) && !engine::parse_damaged_name(name),
                "temporary and a checkpoint");
}

// The other way round: whatever numbers these bytes are, their name is read back.
void check_written(const std::string& bytes) {
  if (bytes.size() < 16) return;
  engine::CheckpointName name;
  for (std::size_t i = 0; i < 8; ++i) {
    name.step = name.step << 8 | static_cast<unsigned char>(bytes[i]);
    name.generation = name.generation << 8 | static_cast<unsigned char>(bytes[8 + i]);
  }
  const bool valid =
      name.step >= 0 && name.generation > 0 && name.generation <= engine::kMaxGeneration;
  const auto parsed = engine::parse_checkpoint_name(engine::format(name));
  fuzz::require(valid ? parsed && *parsed == name : !parsed, "a name that is not read back");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string name(fuzz::text_of(data, size));
  check_checkpoint(name);
  check_temporary(name);
  check_written(name);
  return 0;
}
