// perdure diff A B: what differs between two files.
#include <fmt/format.h>

#include <perdure/diff.hpp>

#include "command.hpp"
#include "progress.hpp"
#include "run_directory.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr const char* kDescription =
    "Tells what differs between two files: keys that were added (+), removed (-) or changed (~), "
    "and how far tensors are apart. What is compared is what the files mean, whatever their "
    "format: keys by name, tensors element by element. Of a run directory, the newest checkpoint "
    "is taken.";
constexpr const char* kFooter =
    "CHANGED is the share of elements with other bits, MAX ABS the largest |a - b|, MAX REL the "
    "largest |a - b| / max(|a|, |b|), ULP how many floats of the dtype lie between two at most, "
    "COSINE that of all elements as two vectors. NaN with the same bits is no change.\n"
    "Tensors of the same dtype, shape and strides whose storages have the same size and CRC-32 "
    "count as equal without being read; --full reads them, too. With --atol or --rtol, a tensor "
    "whose elements all have |a - b| <= ATOL + RTOL * |b| counts as equal, as for torch.allclose.\n"
    "Exit code, as of diff: 0 equal; 1 they differ; 2 one of them could not be read, or is "
    "damaged.\n"
    "Example:\n"
    "  perdure diff before.pt after.pt\n"
    "  perdure diff --rtol 1e-3 model.pt model-bf16.safetensors\n"
    "  perdure diff runs/a runs/b 'model.*.weight'";

struct Request {
  std::string path_a, path_b;
  DiffOptions options;
};

std::string_view sign_of(Difference::What what) {
  switch (what) {
    case Difference::What::added:
      return "+";
    case Difference::What::removed:
      return "-";
    default:
      return "~";
  }
}

Style style_of(Difference::What what) {
  switch (what) {
    case Difference::What::added:
      return Style::green;
    case Difference::What::removed:
      return Style::red;
    default:
      return Style::yellow;
  }
}

std::string_view word_of(Difference::What what) {
  switch (what) {
    case Difference::What::added:
      return "added";
    case Difference::What::removed:
      return "removed";
    case Difference::What::value:
      return "value";
    case Difference::What::tensor:
      break;
  }
  return "tensor";
}

std::string share_text(const Distance& distance) {
  const double share =
      static_cast<double>(distance.changed) / static_cast<double>(distance.elements);
  // Few of many are not none.
  if (share < 0.0005)
    return fmt::format("{} of {}", distance.changed, format_count(distance.elements));
  return fmt::format("{:.1f} %", 100 * share);
}

void add_row(Table& table, const Difference& difference) {
  const Style style = style_of(difference.what);
  std::vector<Table::Cell> cells = {
      {std::string(sign_of(difference.what)), style},
      {difference.name, style},
      shorten(difference.before, 60),
      difference.before == difference.after ? "" : shorten(difference.after, 60)};
  if (const auto& distance = difference.distance) {
    cells.emplace_back(share_text(*distance));
    cells.emplace_back(fmt::format("{:.4g}", distance->max_absolute));
    cells.emplace_back(fmt::format("{:.4g}", distance->max_relative));
    cells.emplace_back(distance->max_ulp ? format_count(*distance->max_ulp) : "");
    cells.emplace_back(distance->cosine ? fmt::format("{:.9g}", *distance->cosine) : "");
  }
  table.add(std::move(cells));
}

std::string differences_text(const DiffReport& report) {
  using enum Table::Align;
  Table table({{" "},
               {"KEY", left, 120},
               {"BEFORE", left, 60},
               {"AFTER", left, 60},
               {"CHANGED", right},
               {"MAX ABS", right},
               {"MAX REL", right, 80, Style::plain, true},
               {"ULP", right, 80, Style::plain, true},
               {"COSINE", right}});
  for (const Difference& difference : report.differences) add_row(table, difference);
  return table.empty() ? "" : table.text();
}

std::string summary_text(const DiffReport& report) {
  std::uint64_t added = 0, removed = 0, tensors = 0, values = 0;
  for (const Difference& difference : report.differences) {
    added += difference.what == Difference::What::added ? 1 : 0;
    removed += difference.what == Difference::What::removed ? 1 : 0;
    tensors += difference.what == Difference::What::tensor ? 1 : 0;
    values += difference.what == Difference::What::value ? 1 : 0;
  }
  std::string out;
  if (!report.prefix.empty())
    out += fmt::format(
        "the keys of {} have '{}' in them, which those of {} lack; they are compared "
        "without it\n",
        escape(report.prefix_in_second ? report.path_b : report.path_a), report.prefix,
        escape(report.prefix_in_second ? report.path_a : report.path_b));
  if (report.differences.empty())
    out += fmt::format("{}: {} and {}", report.prefix.empty() ? "equal" : "equal otherwise",
                       plural(report.tensors, "tensor"), plural(report.values, "value"));
  else
    out += fmt::format("{} of {} and {} of {} changed, {} added, {} removed", format_count(tensors),
                       plural(report.tensors, "tensor"), format_count(values),
                       plural(report.values, "value"), format_count(added), format_count(removed));
  if (report.within_tolerance > 0)
    out +=
        fmt::format("; {} changed within the tolerance", plural(report.within_tolerance, "tensor"));
  if (report.by_checksum > 0)
    out += fmt::format("; {} equal by checksum, not read", format_count(report.by_checksum));
  return out + '\n';
}

Json distance_json(const Distance& distance) {
  return {{"elements", distance.elements},
          {"changed", distance.changed},
          {"beyond", distance.beyond},
          {"max_absolute", number_json(distance.max_absolute)},
          {"max_relative", number_json(distance.max_relative)},
          {"max_ulp", distance.max_ulp ? Json(*distance.max_ulp) : Json()},
          {"cosine", distance.cosine ? Json(*distance.cosine) : Json()}};
}

Json report_json(const DiffReport& report) {
  Json differences = Json::array();
  for (const Difference& difference : report.differences) {
    Json json = {{"what", word_of(difference.what)}, {"name", difference.name}};
    if (difference.what != Difference::What::added) json["before"] = difference.before;
    if (difference.what != Difference::What::removed) json["after"] = difference.after;
    if (difference.distance) json["distance"] = distance_json(*difference.distance);
    differences.push_back(std::move(json));
  }
  return {{"a", report.path_a},
          {"b", report.path_b},
          {"equal", report.equal()},
          {"tensors", report.tensors},
          {"values", report.values},
          {"by_checksum", report.by_checksum},
          {"within_tolerance", report.within_tolerance},
          {"prefix", report.prefix},
          {"prefix_in", report.prefix.empty() ? Json() : Json(report.prefix_in_second ? "b" : "a")},
          {"differences", std::move(differences)}};
}

Exit compare(Request& request, bool json) {
  const CheckpointFile a = open_newest(request.path_a);
  const CheckpointFile b = open_newest(request.path_b);
  Progress progress("diff " + a.name(), diff_size(a, b, request.options));
  request.options.progress = [&](std::uint64_t bytes) { progress.add(bytes); };
  const DiffReport report = diff(a, b, request.options);
  progress.finish();
  print(json ? to_text(report_json(report)) + '\n'
             : differences_text(report) + summary_text(report));
  return report.equal() ? Exit::good : Exit::differs;
}

// Damage is no answer to the question whether they differ.
Exit run_diff(Request& request, bool json) {
  try {
    return compare(request, json);
  } catch (const Error& error) {
    return no_answer(error, json);
  }
}

}  // namespace

void add_diff(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("diff", kDescription);
  auto request = std::make_shared<Request>();
  command->add_option("A", request->path_a, "File, or run directory")->required();
  command->add_option("B", request->path_b, "File, or run directory")->required();
  command->add_option("PATTERN", request->options.pattern, "Only what is called so");
  command->add_option("--atol", request->options.atol, "Absolute tolerance")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--rtol", request->options.rtol, "Relative tolerance")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--full", request->options.full, "Read what is equal by checksum, too");
  command->add_flag("--json", invocation.json, "One JSON object instead of a table");
  command->footer(kFooter);
  command->callback([request, &invocation] {
    invocation.run = [request, &invocation] { return run_diff(*request, invocation.json); };
  });
}

}  // namespace perdure::cli
