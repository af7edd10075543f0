// perdure prune RUN: removes the checkpoints that need not be kept.
#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <perdure/checkpoint_manager.hpp>

#include "best.hpp"
#include "command.hpp"
#include "table.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kDescription =
    "Removes the checkpoints of a run directory that no rule wants to keep; with --dry-run, shows "
    "which, and why the others stay. The newest and the pinned ones (beside which there is a file "
    "\"<name>.pin\") always stay. A training that has the directory open prunes by its own rules: "
    "then only --dry-run works.";
constexpr const char* kFooter =
    "Exit code: 0 done; 2 it could not be done.\n"
    "Example:\n"
    "  perdure prune --keep-last 3 --keep-best val_loss:min:2 --dry-run runs/gpt\n"
    "  perdure prune --keep-last 1 --keep-every-steps 10000 runs/gpt";

struct Rules {
  std::string directory;
  std::size_t keep_last = 0;
  std::vector<std::string> keep_best;
  std::int64_t every_steps = 0;
  double every_hours = 0;
  bool dry_run = false;
};

ManagerOptions options_of(const Rules& rules) {
  ManagerOptions options;
  options.keep_last = rules.keep_last;
  for (const std::string& best : rules.keep_best) options.keep_best.push_back(parse_best(best));
  options.keep_every = {rules.every_steps,
                        std::chrono::duration<double, std::ratio<3600>>(rules.every_hours)};
  options.warning = options.note = [](const std::string& text) { complain(text); };
  return options;
}

std::string joined(const std::vector<std::string>& reasons) {
  std::string out;
  for (const std::string& reason : reasons) out += (out.empty() ? "" : ", ") + reason;
  return out;
}

std::string plan_text(const std::vector<PlannedCheckpoint>& plan, bool dry_run) {
  using enum Table::Align;
  Table table({{"STEP", right},
               {"GENERATION", right},
               {"SIZE", right},
               {dry_run ? "WOULD BE" : "IS"},
               {"WHY", left, 200},
               {"FILE", left, 80, Style::dim, true}});
  std::uint64_t removed = 0;
  std::uint64_t freed = 0;
  for (const PlannedCheckpoint& item : plan) {
    const Checkpoint& checkpoint = item.checkpoint;
    table.add({std::to_string(checkpoint.step()), std::to_string(checkpoint.generation()),
               format_bytes(checkpoint.size),
               item.kept() ? Table::Cell("kept", Style::green) : Table::Cell("removed", Style::red),
               joined(item.reasons), checkpoint.path.filename().string()});
    if (item.kept()) continue;
    ++removed;
    freed += checkpoint.size;
  }
  return table.text() + fmt::format("{} of {}, {}: {}\n", removed,
                                    plural(plan.size(), "checkpoint"), format_bytes(freed),
                                    dry_run ? "would be removed" : "removed");
}

Json plan_json(const std::string& directory, const std::vector<PlannedCheckpoint>& plan,
               bool dry_run) {
  Json items = Json::array();
  for (const PlannedCheckpoint& item : plan)
    items.push_back({{"path", item.checkpoint.path.string()},
                     {"step", item.checkpoint.step()},
                     {"generation", item.checkpoint.generation()},
                     {"size", item.checkpoint.size},
                     {"kept", item.kept()},
                     {"reasons", item.reasons}});
  return {{"directory", directory}, {"dry_run", dry_run}, {"checkpoints", std::move(items)}};
}

Exit run_prune(const Rules& rules, bool json) {
  const ManagerOptions options = options_of(rules);
  // Also what makes sure that the directory is there: a manager would make it.
  std::vector<PlannedCheckpoint> plan = retention_plan(rules.directory, options);
  if (!rules.dry_run) plan = CheckpointManager(rules.directory, options).prune();
  if (json)
    print(to_text(plan_json(rules.directory, plan, rules.dry_run)) + '\n');
  else if (plan.empty())
    print(fmt::format("no checkpoints in {}\n", escape(rules.directory)));
  else
    print(plan_text(plan, rules.dry_run));
  return Exit::good;
}

}  // namespace

void add_prune(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("prune", kDescription);
  auto rules = std::make_shared<Rules>();
  command->add_option("RUN", rules->directory, "Run directory")->required();
  command->add_option("--keep-last", rules->keep_last, "How many of the newest, at least 1")
      ->required()
      ->check(CLI::Range(std::size_t{1}, std::size_t{1'000'000'000}));
  command
      ->add_option("--keep-best", rules->keep_best,
                   "METRIC[:min|:max][:COUNT], the best by a metric (min, 1); any number of times")
      ->allow_extra_args(false);
  command
      ->add_option("--keep-every-steps", rules->every_steps,
                   "The first one at or after each multiple")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--keep-every-hours", rules->every_hours, "One for every so many hours")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--dry-run", rules->dry_run, "Only shows what would be removed");
  command->add_flag("--json", invocation.json, "One JSON object instead of a table");
  command->footer(kFooter);
  command->callback([rules, &invocation] {
    invocation.run = [rules, &invocation] { return run_prune(*rules, invocation.json); };
  });
}

}  // namespace perdure::cli
