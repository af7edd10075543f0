// Arbitrary bytes as the data.pkl of a file that `perdure show` prints: as text without anything
// that a terminal would obey, as JSON that is JSON. The first line is the key.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "command.hpp"
#include "decoded.hpp"
#include "format/archive_layout.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"
#include "node_json.hpp"
#include "node_text.hpp"
#include "require.hpp"

namespace {
std::string output;
}

// In place of the command's own, which print.
namespace perdure::cli {
void print(std::string_view text) { output += text; }
std::string to_text(const Json& json) {
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}
Json number_json(double value) { return std::isfinite(value) ? Json(value) : Json("odd"); }
Json metrics_json(const Metrics&) { return Json::object(); }
}  // namespace perdure::cli

namespace {

using namespace perdure;

std::string zip_of(const std::vector<std::pair<std::string, std::string>>& parts) {
  std::vector<format::ZipRecord> records;
  std::string out;
  for (const auto& [name, content] : parts) {
    format::append_record(records, "archive/" + name, content.size());
    records.back().crc32 = format::crc32(format::as_bytes(content));
    out += format::local_header(records.back()) + content + format::data_descriptor(records.back());
  }
  return out + format::central_directory(records);
}

void check_text() {
  const auto is_odd = [](char c) {
    return (static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7F;
  };
  fuzz::require(std::ranges::none_of(output, is_odd), "a control character is printed");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes = fuzz::text_of(data, size);
  const std::size_t end = std::min(bytes.find('\n'), size);
  const std::string key(bytes.substr(0, std::min<std::size_t>(end, 50)));
  const std::string pickle(bytes.substr(std::min(end + 1, size)));
  try {
    const auto file = CheckpointFile::open(test::source_of(zip_of({{"data.pkl", pickle},
                                                                   {"data/0", std::string(12, 'x')},
                                                                   {"data/1", ""},
                                                                   {"version", "3"}})),
                                           true);
    const cli::Summary summary = cli::summarize(file.value(), key);
    output.clear();
    cli::print_file_text(file, key, summary);
    check_text();
    output.clear();
    cli::print_file_json(file, key, summary);
    fuzz::require(nlohmann::json::accept(output), "what is printed is no JSON");
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported,
                  std::string("another error: ") + error.what());
  }
  return 0;
}
