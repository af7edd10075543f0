// Arbitrary bytes as .perdure/checkpoint.json: what is accepted says the same when it is written
// out again.
#include <nlohmann/json.hpp>

#include "format/checkpoint_json.hpp"
#include "require.hpp"

namespace {

using namespace perdure;

std::optional<CheckpointInfo> read(std::string_view text) {
  try {
    return format::read_checkpoint_json(text);
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported,
                  std::string("another error: ") + error.what());
    fuzz::require(std::string_view(error.what()).size() < 1000, "an error of the file's own words");
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::text_of(data, size);
  const auto info = read(text);
  if (!info) return 0;
  const std::string once = format::write_checkpoint_json(*info);
  const auto again = read(once);
  fuzz::require(again && format::write_checkpoint_json(*again) == once,
                "it does not stay the same");
  const auto json = nlohmann::json::parse(text);
  fuzz::require(json.at("step") == info->step && json.at("generation") == info->generation &&
                    json.at("metrics").size() == info->metrics.size() &&
                    json.at("optimizers").size() == info->optimizers.size(),
                "another reader sees something else");
  return 0;
}
