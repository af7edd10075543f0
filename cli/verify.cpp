// perdure verify PATH...: reads everything and compares every checksum.
#include <fmt/format.h>

#include <perdure/file.hpp>

#include "command.hpp"
#include "run_directory.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kDescription =
    "Reads files from the first byte to the last, compares every checksum, and names every damaged "
    "tensor\n"
    "and place. A PATH may be a run directory: all of its checkpoints then.";
constexpr const char* kFooter =
    "Exit code: 0 every file is good; 1 damage was found; 2 something could not be verified: it is "
    "not\n"
    "there, cannot be read, or carries no checksums (\"unchecked\": torch.save with "
    "compute_crc32=False).\n"
    "Example:\n"
    "  perdure verify runs/gpt model.pt";

// What became of one file: a report, or the error that kept it from being read.
struct Outcome {
  VerifyReport report;
  std::optional<Error> error;
};

Outcome check(const fs::path& given, const fs::path& path) {
  try {
    return {verify_checkpoint(given, path), std::nullopt};
  } catch (const Error& error) {
    Outcome outcome;
    outcome.report.path = path.string();
    outcome.error = error;
    return outcome;
  }
}

std::string state_name(const Outcome& outcome) {
  if (outcome.error) return outcome.error->code() == ErrorCode::corrupt ? "damaged" : "failed";
  switch (outcome.report.state) {
    case VerifyReport::State::good:
      return "good";
    case VerifyReport::State::unchecked:
      return "unchecked";
    case VerifyReport::State::damaged:
      break;
  }
  return "damaged";
}

Exit exit_of(const Outcome& outcome) {
  const std::string state = state_name(outcome);
  if (state == "good") return Exit::good;
  return state == "damaged" ? Exit::damaged : Exit::could_not_run;
}

std::string finding_text(const Finding& finding) {
  std::string place;
  if (!finding.tensor.empty()) place += shorten(finding.tensor, 200) + ": ";
  if (!finding.record.empty()) place += "record " + shorten(finding.record, 200) + ", ";
  return fmt::format("    {}offset {}: {}\n", escape(place), finding.offset, escape(finding.what));
}

std::string outcome_text(const Outcome& outcome) {
  const VerifyReport& report = outcome.report;
  const std::string state = state_name(outcome);
  std::string out = fmt::format("{:<9}  {}", state, escape(report.path));
  if (outcome.error) return out + "\n    " + escape(outcome.error->what()) + '\n';
  out += fmt::format("  ({}, {} read)\n", plural(report.tensors, "tensor"),
                     format_bytes(report.bytes));
  if (state == "unchecked")
    out +=
        "    the structure is sound, but the file carries no checksums: its contents cannot be "
        "verified\n";
  for (const Finding& finding : report.findings) out += finding_text(finding);
  return out;
}

Json outcome_json(const Outcome& outcome) {
  Json findings = Json::array();
  for (const Finding& finding : outcome.report.findings)
    findings.push_back({{"record", finding.record},
                        {"tensor", finding.tensor},
                        {"offset", finding.offset},
                        {"what", finding.what}});
  return {{"path", outcome.report.path},
          {"state", state_name(outcome)},
          {"bytes", outcome.report.bytes},
          {"tensors", outcome.report.tensors},
          {"findings", std::move(findings)},
          {"error", outcome.error ? error_json(*outcome.error) : Json()}};
}

using Take = std::function<void(const Outcome&)>;

// A file of a run directory that is gone when its turn comes was pruned meanwhile, and no concern.
void check_directory(const fs::path& directory, const Take& take) {
  for (const fs::path& file : checkpoint_files(directory)) {
    const Outcome outcome = check(directory, file);
    if (!outcome.error || outcome.error->code() != ErrorCode::not_found || file == directory)
      take(outcome);
  }
}

// A directory that cannot be listed, or has nothing in it, is an outcome of its own.
void check_path(const fs::path& path, const Take& take) {
  try {
    check_directory(path, take);
  } catch (const Error& error) {
    Outcome outcome;
    outcome.report.path = path.string();
    outcome.error = error;
    take(outcome);
  }
}

Exit run_verify(const std::vector<std::string>& paths, bool json) {
  Exit exit = Exit::good;
  Json files = Json::array();
  const auto take = [&](const Outcome& outcome) {
    exit = worse(exit, exit_of(outcome));
    if (json) return files.push_back(outcome_json(outcome));
    print(outcome_text(outcome));
    flush_output();  // large files take a while: what is known is shown
  };
  for (const std::string& path : paths) check_path(path, take);
  if (json) print(to_text({{"files", std::move(files)}}) + '\n');
  return exit;
}

}  // namespace

void add_verify(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("verify", kDescription);
  auto paths = std::make_shared<std::vector<std::string>>();
  command->add_option("PATH", *paths, "Files or run directories")->required();
  command->add_flag("--json", invocation.json, "One JSON object instead of lines");
  command->footer(kFooter);
  command->callback([paths, &invocation] {
    invocation.run = [paths, &invocation] { return run_verify(*paths, invocation.json); };
  });
}

}  // namespace perdure::cli
