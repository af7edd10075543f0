// perdure ls RUN: the checkpoints of a run directory.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <perdure/checkpoint_manager.hpp>

#include "best.hpp"
#include "command.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kDescription =
    "Lists the checkpoints of a run directory, newest first: step, generation, age, size, metrics, "
    "and whether the structure of the file is whole (`perdure verify` reads the contents too). "
    "Below, when the run was restarted, as its history.jsonl tells.";
constexpr const char* kFooter =
    "The newest checkpoint is the one with the highest generation; a restore takes the newest "
    "whole one.\n"
    "Exit code: 0 all are whole; 1 one is damaged; 2 the directory could not be read.\n"
    "Example:\n"
    "  perdure ls runs/gpt\n"
    "  perdure ls --best val_loss --best accuracy:max runs/gpt\n"
    "  perdure ls --json runs/gpt";

double now() {
  const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since_1970).count();
}

std::string metrics_text(const Metrics& metrics) {
  std::string out;
  for (const auto& [name, value] : metrics)
    out += fmt::format("{}{}={}", out.empty() ? "" : " ", name, format_number(value));
  return out;
}

Exit exit_of(const ListedCheckpoint& entry) {
  if (entry.problem.empty()) return Exit::good;
  return entry.damaged ? Exit::damaged : Exit::could_not_run;
}

std::string pin_text(const ListedCheckpoint& entry) {
  if (!entry.pin) return "";
  return entry.pin->empty() ? "yes" : *entry.pin;
}

// Of each checkpoint, by which metrics it is among the best: "val_loss, accuracy".
using Marks = std::map<fs::path, std::string>;

Marks marks_of(const fs::path& directory, const std::vector<std::string>& wanted) {
  Marks marks;
  for (const std::string& text : wanted) {
    const Best best = parse_best(text);
    ManagerOptions options;
    options.keep_best = {best};
    for (const PlannedCheckpoint& planned : retention_plan(directory, options))
      for (const std::string& reason : planned.reasons)
        if (reason.starts_with("best")) {
          std::string& mark = marks[planned.checkpoint.path];
          mark += (mark.empty() ? "" : ", ") + best.metric;
        }
  }
  return marks;
}

std::string_view state_name(const ListedCheckpoint& entry) {
  if (entry.problem.empty()) return "whole";
  return entry.damaged ? "damaged" : "unreadable";
}

Table::Cell state_cell(const ListedCheckpoint& entry) {
  return {std::string(state_name(entry)), entry.problem.empty() ? Style::green : Style::red};
}

void add_row(Table& table, const ListedCheckpoint& entry, const Marks& best) {
  const Checkpoint& checkpoint = entry.checkpoint;
  const bool whole = entry.problem.empty();
  const double created = checkpoint.info.created;
  const auto marks = best.find(checkpoint.path);
  table.add({std::to_string(checkpoint.step()), std::to_string(checkpoint.generation()),
             created > 0 ? format_age(now() - created) : "", format_bytes(checkpoint.size),
             state_cell(entry), metrics_text(checkpoint.info.metrics),
             marks == best.end() ? "" : marks->second, whole ? checkpoint.info.reason : "",
             pin_text(entry), checkpoint.path.filename().string()});
}

std::string list_text(const std::vector<ListedCheckpoint>& listed, const Marks& best) {
  using enum Table::Align;
  Table table({{"STEP", right},
               {"GENERATION", right},
               {"AGE", right},
               {"SIZE", right},
               {"STATE"},
               {"METRICS"},
               {"BEST", left, 80, Style::green},
               {"REASON", left, 80, Style::dim, true},
               {"PINNED", left, 80, Style::yellow},
               {"FILE", left, 80, Style::dim, true}});
  for (const ListedCheckpoint& entry : listed) add_row(table, entry, best);
  std::string out = table.text();
  for (const ListedCheckpoint& entry : listed)
    if (!entry.problem.empty())
      out += styled(state_name(entry), Style::red) + ":\n" +
             indented(escape(shorten(entry.problem, 400)), 4);
  return out;
}

Json entry_json(const ListedCheckpoint& entry, const Marks& best) {
  const Checkpoint& checkpoint = entry.checkpoint;
  return {{"path", checkpoint.path.string()},
          {"step", checkpoint.step()},
          {"generation", checkpoint.generation()},
          {"parent", checkpoint.info.parent},
          {"size", checkpoint.size},
          {"created", number_json(checkpoint.info.created)},
          {"reason", checkpoint.info.reason},
          {"metrics", metrics_json(checkpoint.info.metrics)},
          {"best", best.contains(checkpoint.path) ? Json(best.at(checkpoint.path)) : Json()},
          {"pin", entry.pin ? Json(*entry.pin) : Json()},
          {"whole", entry.problem.empty()},
          {"problem", entry.problem.empty() ? Json() : Json(entry.problem)}};
}

struct Restart {
  double time = 0;
  std::int64_t step = 0;
  std::int64_t generation = 0;
};

// The history is for people: what of it cannot be read is no reason not to list the checkpoints.
std::vector<Restart> find_restarts(const fs::path& directory) {
  std::vector<Restart> restarts;
  try {
    for (const Value& event : read_history(directory)) {
      try {
        if (event["event"].as_string() == "restore")
          restarts.push_back(
              {event["time"].as_double(), event["step"].as_int(), event["generation"].as_int()});
      } catch (const Error&) {
        // Somebody else's line.
      }
    }
  } catch (const Error& error) {
    complain(fmt::format("the restarts of the run are not known: {}", error.what()));
  }
  return restarts;
}

// The last few, the newest first.
std::string restarts_text(const std::vector<Restart>& restarts) {
  constexpr std::size_t kShown = 5;
  if (restarts.empty()) return "";
  std::string out = fmt::format("{}:\n", plural(restarts.size(), "restart"));
  for (std::size_t i = 0; i < std::min(kShown, restarts.size()); ++i) {
    const Restart& restart = restarts[restarts.size() - 1 - i];
    out += fmt::format("  {} ago, from step {} (generation {})\n", format_age(now() - restart.time),
                       restart.step, restart.generation);
  }
  if (restarts.size() > kShown) out += fmt::format("  and {} before\n", restarts.size() - kShown);
  return out;
}

Json restarts_json(const std::vector<Restart>& restarts) {
  Json out = Json::array();
  for (const Restart& restart : restarts)
    out.push_back({{"time", number_json(restart.time)},
                   {"step", restart.step},
                   {"generation", restart.generation}});
  return out;
}

Json list_json(const fs::path& directory, const std::vector<ListedCheckpoint>& listed,
               const Marks& best) {
  Json checkpoints = Json::array();
  for (const ListedCheckpoint& entry : listed) checkpoints.push_back(entry_json(entry, best));
  return {{"directory", directory.string()},
          {"checkpoints", std::move(checkpoints)},
          {"restarts", restarts_json(find_restarts(directory))}};
}

Exit run_ls(const fs::path& directory, const std::vector<std::string>& wanted, bool json) {
  std::error_code ignored;
  if (fs::is_regular_file(directory, ignored))
    throw Error(ErrorCode::invalid, fmt::format("{0}: this is a file, not a run directory; to look "
                                                "into it: perdure show {0}",
                                                directory.string()));
  const std::vector<ListedCheckpoint> listed = list_checkpoints(directory);
  const Marks best = marks_of(directory, wanted);
  if (json)
    print(to_text(list_json(directory, listed, best)) + '\n');
  else if (listed.empty())
    print(fmt::format("no checkpoints in {}\n", escape(directory.string())));
  else
    print(list_text(listed, best) + restarts_text(find_restarts(directory)));
  Exit exit = Exit::good;
  for (const ListedCheckpoint& entry : listed) exit = worse(exit, exit_of(entry));
  return exit;
}

}  // namespace

void add_ls(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("ls", kDescription);
  struct Request {
    std::string directory;
    std::vector<std::string> best;
  };
  auto request = std::make_shared<Request>();
  command->add_option("RUN", request->directory, "Run directory")->required();
  command
      ->add_option("--best", request->best,
                   "METRIC[:min|:max][:COUNT]: marks the best by a metric (min, 1); any number of "
                   "times")
      ->allow_extra_args(false);
  command->add_flag("--json", invocation.json, "One JSON object instead of a table");
  command->footer(kFooter);
  command->callback([request, &invocation] {
    invocation.run = [request, &invocation] {
      return run_ls(request->directory, request->best, invocation.json);
    };
  });
}

}  // namespace perdure::cli
