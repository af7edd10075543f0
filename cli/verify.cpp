// perdure verify PATH...: reads everything and compares every checksum.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <perdure/file.hpp>
#include <system_error>
#include <thread>

#include "command.hpp"
#include "progress.hpp"
#include "run_directory.hpp"
#include "terminal.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kDescription =
    "Reads files from the first byte to the last, compares every checksum, and names every damaged "
    "tensor and place. A PATH may be a run directory: all of its checkpoints then.";
constexpr const char* kFooter =
    "Exit code: 0 every file is good; 1 damage was found; 2 something could not be verified: it is "
    "not there, cannot be read, or carries no checksums (\"unchecked\": torch.save with "
    "compute_crc32=False).\n"
    "Example:\n"
    "  perdure verify runs/gpt model.pt";

// What became of one file: a report, or the error that kept it from being read.
struct Outcome {
  VerifyReport report;
  std::optional<Error> error;
};

Outcome check(const fs::path& given, const fs::path& path, Progress& progress) {
  try {
    return {verify_checkpoint(given, path, [&](std::uint64_t bytes) { progress.add(bytes); }),
            std::nullopt};
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

Style style_of(std::string_view state) {
  if (state == "good") return Style::green;
  return state == "unchecked" ? Style::yellow : Style::red;
}

std::string finding_text(const Finding& finding) {
  std::string place;
  if (!finding.tensor.empty()) place += shorten(finding.tensor, 200) + ": ";
  if (!finding.record.empty()) place += "record " + shorten(finding.record, 200) + ", ";
  return indented(
      fmt::format("{}offset {}: {}", escape(place), finding.offset, escape(finding.what)), 4);
}

std::string outcome_text(const Outcome& outcome) {
  const VerifyReport& report = outcome.report;
  const std::string state = state_name(outcome);
  std::string out =
      styled(state, style_of(state)) + std::string(11 - state.size(), ' ') + escape(report.path);
  if (outcome.error) return out + '\n' + indented(escape(outcome.error->what()), 4);
  out += fmt::format("  ({}, {} read)\n", plural(report.tensors, "tensor"),
                     format_bytes(report.bytes));
  if (state == "unchecked")
    out += indented(
        "the structure is sound, but the file carries no checksums: its contents cannot be "
        "verified",
        4);
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

// One file to check; or what kept a directory from being listed.
struct Job {
  fs::path given, file;
  std::optional<Error> error;
  std::promise<Outcome> outcome;
};

std::vector<Job> jobs_for(const std::vector<std::string>& paths) {
  std::vector<Job> jobs;
  for (const fs::path given : paths) {
    try {
      for (const fs::path& file : checkpoint_files(given)) jobs.push_back({given, file, {}, {}});
    } catch (const Error& error) {
      jobs.push_back({given, given, error, {}});
    }
  }
  return jobs;
}

// Of all files of a directory.
std::uint64_t size_of(const fs::path& path) {
  std::error_code failed;
  std::uint64_t total = 0;
  if (fs::is_directory(path, failed)) {
    for (const auto& entry : fs::directory_iterator(path, failed)) total += size_of(entry.path());
    return total;
  }
  const std::uintmax_t size = fs::file_size(path, failed);
  return failed ? 0 : size;
}

std::uint64_t size_of(const std::vector<Job>& jobs) {
  std::uint64_t total = 0;
  for (const Job& job : jobs) total += size_of(job.file);
  return total;
}

void check(Job& job, Progress& progress) {
  try {
    if (job.error) throw *job.error;
    job.outcome.set_value(check(job.given, job.file, progress));
  } catch (const Error& error) {
    Outcome outcome;
    outcome.report.path = job.file.string();
    outcome.error = error;
    job.outcome.set_value(std::move(outcome));
  } catch (...) {
    job.outcome.set_exception(std::current_exception());  // Ctrl-C
  }
}

// A file of a run directory that is gone when its turn comes was pruned meanwhile, and no concern.
bool was_pruned(const Job& job, const Outcome& outcome) {
  return outcome.error && outcome.error->code() == ErrorCode::not_found && job.file != job.given;
}

struct Request {
  std::vector<std::string> paths;
  std::size_t threads = 1;
};

Exit run_verify(const Request& request, bool json) {
  std::vector<Job> jobs = jobs_for(request.paths);
  Progress progress("verify", size_of(jobs));
  std::atomic<std::size_t> next = 0;
  std::vector<std::jthread> threads;  // joined before what they use goes
  for (std::size_t i = 0; request.threads > 1 && i < std::min(request.threads, jobs.size()); ++i)
    threads.emplace_back([&] {
      for (std::size_t n = next++; n < jobs.size(); n = next++) check(jobs[n], progress);
    });
  Exit exit = Exit::good;
  Json files = Json::array();
  for (Job& job : jobs) {
    if (threads.empty()) check(job, progress);
    const Outcome outcome = job.outcome.get_future().get();
    if (was_pruned(job, outcome)) continue;
    exit = worse(exit, exit_of(outcome));
    if (json) {
      files.push_back(outcome_json(outcome));
      continue;
    }
    progress.finish();
    print(outcome_text(outcome));
    flush_output();  // large files take a while: what is known is shown
  }
  progress.finish();
  if (json) print(to_text({{"files", std::move(files)}}) + '\n');
  return exit;
}

}  // namespace

void add_verify(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("verify", kDescription);
  auto request = std::make_shared<Request>();
  command->add_option("PATH", request->paths, "Files or run directories")->required();
  command
      ->add_option("-j", request->threads,
                   "So many files at once; each is read by up to four threads")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_flag("--json", invocation.json, "One JSON object instead of lines");
  command->footer(kFooter);
  command->callback([request, &invocation] {
    invocation.run = [request, &invocation] { return run_verify(*request, invocation.json); };
  });
}

}  // namespace perdure::cli
