// perdure repair FILE OUT: saves what is whole in a damaged file.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <perdure/repair.hpp>

#include "command.hpp"
#include "terminal.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr const char* kDescription =
    "Saves every tensor whose checksum is right from a truncated or damaged FILE at OUT, and lists "
    "what is lost. FILE is only read. What is lost is left out of its dict; in a list or tuple, "
    "None stands in its place.";
constexpr const char* kFooter =
    "Exit code: 0 nothing is lost; 1 something is lost, the rest is saved; 2 nothing could be "
    "saved.\n"
    "Example:\n"
    "  perdure repair cut.pt whole.pt\n"
    "  perdure repair --like runs/gpt/step-0000000090-g00000009.pt cut.pt whole.pt";

struct Request {
  std::string file;
  std::string out;
  std::string like;
  bool force = false;
};

std::string lost_text(const Lost& lost) {
  std::string what = escape(shorten(lost.path, 200));
  if (!lost.dtype.empty())
    what += fmt::format("  {} [{}]", lost.dtype, fmt::join(lost.shape, ", "));
  return indented(fmt::format("{}: {}", what, escape(lost.why)), 4);
}

std::string report_text(const RepairReport& report, const std::string& out) {
  std::string text =
      fmt::format("{}  {}  ({}, {})\n", styled("saved", Style::green), escape(out),
                  plural(report.saved.tensors, "tensor"), format_bytes(report.saved.bytes));
  for (const std::string& note : report.notes)
    text += styled("note", Style::yellow) + "   " + escape(note) + '\n';
  text += report.lost.empty()
              ? "nothing is lost\n"
              : fmt::format("{}   {}:\n", styled("lost", Style::red), report.lost.size());
  for (const Lost& lost : report.lost) text += lost_text(lost);
  return text;
}

Json report_json(const RepairReport& report, const std::string& out) {
  Json lost = Json::array();
  for (const Lost& item : report.lost)
    lost.push_back(
        {{"path", item.path}, {"dtype", item.dtype}, {"shape", item.shape}, {"why", item.why}});
  return {{"path", report.path},
          {"out", out},
          {"saved", {{"tensors", report.saved.tensors}, {"bytes", report.saved.bytes}}},
          {"lost", std::move(lost)},
          {"notes", report.notes}};
}

// Damage is why one calls this: an error means that there is no answer, never "damaged".
Exit run_repair(const Request& request, bool json) {
  try {
    const RepairReport report =
        repair(request.file, request.out, {.like = request.like, .force = request.force});
    print(json ? to_text(report_json(report, request.out)) + '\n'
               : report_text(report, request.out));
    return report.lost.empty() ? Exit::good : Exit::damaged;
  } catch (const Error& error) {
    return no_answer(error, json);
  }
}

}  // namespace

void add_repair(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("repair", kDescription);
  auto request = std::make_shared<Request>();
  command->add_option("FILE", request->file, "A file of perdure or torch.save")->required();
  command->add_option("OUT", request->out, "Where to save; not FILE")->required();
  command->add_option("--like", request->like,
                      "Another checkpoint that the same program wrote: it lends the names, dtypes "
                      "and shapes where FILE has lost its own, and no values");
  command->add_flag("--force", request->force, "Replaces OUT where it exists");
  command->add_flag("--json", invocation.json, "One JSON object instead of lines");
  command->footer(kFooter);
  command->callback([request, &invocation] {
    invocation.run = [request, &invocation] { return run_repair(*request, invocation.json); };
  });
}

}  // namespace perdure::cli
