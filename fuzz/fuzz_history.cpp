// Arbitrary bytes as history.jsonl: nothing is thrown, every event is a dict, and it does not
// matter in which pieces it is read.
#include "engine/history.hpp"
#include "format/same_value.hpp"
#include "require.hpp"

namespace {

using namespace perdure;

std::vector<Value> events_of(std::string_view text, std::size_t piece) {
  engine::HistoryReader reader;
  for (std::size_t at = 0; at < text.size(); at += piece) reader.take(text.substr(at, piece));
  return reader.finish();
}

std::string difference(const std::vector<Value>& a, const std::vector<Value>& b) {
  return test::Comparison::difference(Value::list(a), Value::list(b));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::text_of(data, size);
  const auto whole = events_of(text, text.size() + 1);
  for (const Value& event : whole) fuzz::require(event.is_mapping(), "an event that is no dict");
  for (const std::size_t piece : {1, 7})
    fuzz::require(difference(whole, events_of(text, piece)).empty(), "pieces make a difference");
  // A line more, and a torn one: what was there stays as it was.
  auto longer = events_of(std::string(text) + "\n{\"event\": \"x\"}\n{\"event", 4096);
  fuzz::require(!longer.empty() && longer.back()["event"].as_string() == "x", "a line is lost");
  longer.pop_back();
  fuzz::require(difference(whole, longer).empty(), "a line changes another");
  return 0;
}
