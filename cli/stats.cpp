// perdure stats FILE [PATTERN]: what the numbers in a file are like.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <perdure/stats.hpp>

#include "command.hpp"
#include "node_text.hpp"
#include "progress.hpp"
#include "run_directory.hpp"
#include "table.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr const char* kDescription =
    "Counts NaN, infinities and zeros, and tells smallest, largest, mean, root mean square (RMS) "
    "and L2 norm of every tensor, of groups of them, and of an optimizer's momentum beside the "
    "weights that it belongs to. The file is read once, with its checksums compared. Of a run "
    "directory, the newest checkpoint is read.";
constexpr const char* kFooter =
    "PATTERN is a name (keys joined with dots); it selects what it names and all below. * stands "
    "for any characters (dots too), ? for one.\n"
    "MIN to NORM are of the finite numbers: NaN and infinities are counted, and do not drown the "
    "rest. Of complex numbers, MIN, MAX, RMS and NORM are of the magnitudes. Tied weights count "
    "once in a group.\n"
    "Exit code: 0 read; 1 the file is damaged; 2 it could not be read.\n"
    "Example:\n"
    "  perdure stats runs/gpt\n"
    "  perdure stats model.pt 'model.*.weight'\n"
    "  perdure stats --nan model.pt                  # only what has NaN or infinities";

struct Request {
  std::string path;
  StatsOptions options;
  std::size_t depth = 1;
  bool only_nan = false;
};

std::uint64_t unsigned_of(const BigInt& x) {
  std::uint64_t out = 0;
  for (std::size_t i = std::min<std::size_t>(x.bytes.size(), 8); i-- > 0;)
    out = out << 8 | static_cast<unsigned char>(x.bytes[i]);
  return out;
}

// Where there is little room, three say what one wants to see at a glance.
int digits() {
  constexpr std::size_t kNarrow = 100;
  return output_columns().value_or(kNarrow) < kNarrow ? 3 : 5;
}

std::string short_number(const Value& value) {
  switch (value.kind()) {
    case Kind::none:
      return "";
    case Kind::integer:
      return value.as_big_int() == nullptr ? repr(value)
                                           : std::to_string(unsigned_of(*value.as_big_int()));
    case Kind::complex:
      return fmt::format("{:.4g}{:+.4g}j", value.as_complex().real(), value.as_complex().imag());
    default:
      return fmt::format("{:.{}g}", value.as_double(), digits());
  }
}

std::string count_text(std::uint64_t count) { return count == 0 ? "" : format_count(count); }

bool has_bad(const Figures& figures) { return figures.nan + figures.pos_inf + figures.neg_inf > 0; }

std::vector<Table::Cell> figure_cells(const Figures& figures) {
  return {format_count(figures.elements),
          {count_text(figures.nan), Style::red},
          {count_text(figures.pos_inf), Style::red},
          {count_text(figures.neg_inf), Style::red},
          {count_text(figures.zeros), Style::dim},
          short_number(figures.min),
          short_number(figures.max),
          short_number(figures.mean),
          short_number(figures.rms),
          short_number(figures.norm)};
}

std::vector<Table::Column> columns(std::vector<Table::Column> first) {
  for (const char* title :
       {"ELEMENTS", "NAN", "+INF", "-INF", "ZEROS", "MIN", "MAX", "MEAN", "RMS", "NORM"})
    first.push_back({title, Table::Align::right});
  return first;
}

void add_row(Table& table, std::vector<Table::Cell> cells, const Figures& figures,
             std::string note = "") {
  for (Table::Cell& cell : figure_cells(figures)) cells.push_back(std::move(cell));
  cells.emplace_back(std::move(note));
  table.add(std::move(cells));
}

std::string note_of(const TensorStats& stats) {
  if (!stats.problem.empty()) return stats.problem;
  return stats.same_as.empty() ? "" : "same tensor as " + shorten(stats.same_as, 100);
}

std::string tensors_text(const StatsReport& report, bool only_nan) {
  std::vector<Table::Column> all = columns({{"TENSOR", Table::Align::left, 120},
                                            {"DTYPE", Table::Align::left, 80, Style::dim, true},
                                            {"SHAPE"}});
  all[3].spare = true;  // the shape says it
  all.push_back({"NOTES", Table::Align::left, 200});
  Table table(std::move(all));
  for (const TensorStats& stats : report.tensors)
    if (!only_nan || has_bad(stats.figures))
      add_row(table, {stats.name, std::string(dtype_name(stats.dtype)), shape_text(stats.shape)},
              stats.figures, note_of(stats));
  return table.empty() ? "" : table.text();
}

std::string groups_text(const StatsReport& report, std::size_t depth) {
  Table table(columns({{"GROUP", Table::Align::left, 120}, {"TENSORS", Table::Align::right}}));
  for (const GroupStats& group : report.groups)
    if (group.depth <= depth)
      add_row(table, {group.name, format_count(group.tensors)}, group.figures);
  return table.empty() ? "" : "\n" + table.text();
}

double norm_of(const Figures& figures) {
  return figures.norm.is_none() ? 0 : figures.norm.as_double();
}

// "exp_avg 0.0123, exp_avg_sq 4.5e-07"
std::string momentum_text(const StatsReport& report, const MomentumStats& momentum) {
  std::vector<std::string> parts;
  for (const std::size_t number : momentum.momentum) {
    const TensorStats& stats = report.tensors[number];
    const std::string key = stats.path.back().kind() == Kind::string ? stats.path.back().as_string()
                                                                     : repr(stats.path.back());
    parts.push_back(fmt::format("{} {:.5g}", shorten(key, 40), norm_of(stats.figures)));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string momenta_text(const StatsReport& report) {
  using enum Table::Align;
  Table table(
      {{"PARAMETER", left, 120}, {"NORM", right}, {"NORMS OF ITS OPTIMIZER STATE", left, 200}});
  for (const MomentumStats& momentum : report.momentum)
    table.add({momentum.parameter,
               momentum.weight == MomentumStats::kNone
                   ? "?"
                   : short_number(report.tensors[momentum.weight].figures.norm),
               momentum_text(report, momentum)});
  return table.empty() ? "" : "\n" + table.text();
}

Json number_of(const Value& value) {
  switch (value.kind()) {
    case Kind::none:
      return nullptr;
    case Kind::integer:
      return value.as_big_int() == nullptr ? Json(value.as_int())
                                           : Json(unsigned_of(*value.as_big_int()));
    case Kind::complex:
      return Json::array(
          {number_json(value.as_complex().real()), number_json(value.as_complex().imag())});
    default:
      return number_json(value.as_double());
  }
}

void add_figures(Json& json, const Figures& figures) {
  json["elements"] = figures.elements;
  json["nan"] = figures.nan;
  json["pos_inf"] = figures.pos_inf;
  json["neg_inf"] = figures.neg_inf;
  json["zeros"] = figures.zeros;
  json["min"] = number_of(figures.min);
  json["max"] = number_of(figures.max);
  json["mean"] = number_of(figures.mean);
  json["rms"] = number_of(figures.rms);
  json["norm"] = number_of(figures.norm);
}

Json tensor_json(const TensorStats& stats) {
  Json json = {{"name", stats.name}, {"dtype", dtype_name(stats.dtype)}, {"shape", stats.shape}};
  if (!stats.same_as.empty()) json["same_as"] = stats.same_as;
  if (!stats.parameter.empty()) json["parameter"] = stats.parameter;
  if (stats.problem.empty())
    add_figures(json, stats.figures);
  else
    json["problem"] = stats.problem;
  return json;
}

Json report_json(const StatsReport& report, const Request& request) {
  Json tensors = Json::array();
  Json groups = Json::array();
  Json momenta = Json::array();
  for (const TensorStats& stats : report.tensors)
    if (!request.only_nan || has_bad(stats.figures)) tensors.push_back(tensor_json(stats));
  for (const GroupStats& group : report.groups) {
    Json json = {{"name", group.name}, {"depth", group.depth}, {"tensors", group.tensors}};
    add_figures(json, group.figures);
    groups.push_back(std::move(json));
  }
  for (const MomentumStats& momentum : report.momentum) {
    Json names = Json::array();
    for (const std::size_t number : momentum.momentum) names.push_back(report.tensors[number].name);
    momenta.push_back({{"parameter", momentum.parameter},
                       {"optimizer", momentum.optimizer},
                       {"weight", momentum.weight == MomentumStats::kNone
                                      ? Json()
                                      : Json(report.tensors[momentum.weight].name)},
                       {"state", std::move(names)}});
  }
  return {{"path", report.path},
          {"bytes", report.bytes},
          {"tensors", std::move(tensors)},
          {"groups", std::move(groups)},
          {"momentum", std::move(momenta)}};
}

Exit run_stats(Request& request, bool json) {
  const CheckpointFile file = open_newest(request.path);
  Progress progress("stats " + file.name(), stats_size(file, request.options));
  request.options.progress = [&](std::uint64_t bytes) { progress.add(bytes); };
  const StatsReport report = stats(file, request.options);
  progress.finish();
  if (json)
    print(to_text(report_json(report, request)) + '\n');
  else if (report.tensors.empty())
    print(fmt::format("no tensors in {}\n", escape(report.path)));
  else if (const std::string tensors = tensors_text(report, request.only_nan); request.only_nan)
    print(tensors.empty() ? "no NaN and no infinities\n" : tensors);
  else
    print(tensors + groups_text(report, request.depth) + momenta_text(report));
  return Exit::good;
}

}  // namespace

void add_stats(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("stats", kDescription);
  auto request = std::make_shared<Request>();
  command->add_option("FILE", request->path, "File, or run directory")->required();
  command->add_option("PATTERN", request->options.pattern, "Only tensors whose name this matches");
  command->add_option("--depth", request->depth, "Groups down to so many parts of a name; 0: none")
      ->capture_default_str();
  command->add_flag("--nan", request->only_nan, "Only tensors that have NaN or infinities");
  command->add_flag("--json", invocation.json, "One JSON object instead of tables");
  command->footer(kFooter);
  command->callback([request, &invocation] {
    invocation.run = [request, &invocation] { return run_stats(*request, invocation.json); };
  });
}

}  // namespace perdure::cli
