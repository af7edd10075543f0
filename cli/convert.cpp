// perdure convert IN OUT: another format, or a part of what is there.
#include <fmt/format.h>

#include <perdure/convert.hpp>

#include "command.hpp"
#include "progress.hpp"
#include "run_directory.hpp"
#include "terminal.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr const char* kDescription =
    "Writes what is in IN to OUT in another format, or a part of it. IN: a PyTorch file, "
    "safetensors (also an index, or a directory that has one), a directory of "
    "torch.distributed.checkpoint (DCP) or of several ranks, a run directory (its newest). OUT's "
    "ending says the format: .pt, .pth, .bin, .ckpt PyTorch's own; .safetensors; none a DCP "
    "directory. Tensors stream through: files larger than memory are fine.";
constexpr const char* kFooter =
    "Names are keys joined by dots; * stands for any run of characters.\n"
    "Exit code: 0 written; 1 IN is damaged; 2 it could not be done. Nothing is left at OUT then.\n"
    "Example:\n"
    "  perdure convert --only model --rename 'model.*=*' runs/gpt model.safetensors\n"
    "  perdure convert --dtype bfloat16 --strip-optimizer checkpoint.pt small.pt\n"
    "  perdure convert checkpoints/step-1000 whole.pt";

struct Request {
  std::string in;
  std::string out;
  std::string to;
  std::string dtype;
  std::vector<std::string> rename;
  ConvertOptions options;
};

const std::pair<std::string, FileFormat> kFormats[] = {{"torch", FileFormat::torch},
                                                       {"safetensors", FileFormat::safetensors},
                                                       {"dcp", FileFormat::dcp}};

std::string name_of(FileFormat format) {
  for (const auto& [name, known] : kFormats)
    if (known == format) return name;
  return "";
}

DType parse_dtype(std::string name) {
  for (const auto& [brief, full] : {std::pair{"bf16", "bfloat16"},
                                    {"fp16", "float16"},
                                    {"fp32", "float32"},
                                    {"fp64", "float64"}})
    if (name == brief) name = full;
  if (const auto dtype = dtype_from_name(name)) return *dtype;
  throw Error(ErrorCode::invalid, fmt::format("--dtype {}: no dtype of PyTorch", name));
}

ConvertOptions options_of(const Request& request) {
  ConvertOptions options = request.options;
  for (const auto& [name, format] : kFormats)
    if (request.to == name) options.to = format;
  if (!request.dtype.empty()) options.dtype = parse_dtype(request.dtype);
  for (const std::string& rule : request.rename) {
    const std::size_t equals = rule.find('=');
    if (equals == rule.npos)
      throw Error(ErrorCode::invalid, fmt::format("--rename {}: write it as OLD=NEW", rule));
    options.rename.emplace_back(rule.substr(0, equals), rule.substr(equals + 1));
  }
  return options;
}

std::string report_text(const ConvertReport& report) {
  const std::string wrote = styled("wrote", Style::green);
  std::string text = fmt::format("{}  {}  ({}, {})\n", wrote, escape(report.path.string()),
                                 plural(report.tensors, "tensor"), format_bytes(report.bytes));
  if (!report.rest.empty())
    text += fmt::format("{}  {}  (what safetensors cannot hold)\n", wrote,
                        escape(report.rest.string()));
  for (const std::string& name : report.left_out)
    text += fmt::format("{}  {}\n", styled("left out", Style::yellow), escape(shorten(name, 200)));
  return text;
}

Json report_json(const ConvertReport& report) {
  Json json{{"path", report.path.string()},
            {"format", name_of(report.format)},
            {"tensors", report.tensors},
            {"bytes", report.bytes},
            {"left_out", report.left_out}};
  json["rest"] = report.rest.empty() ? Json() : Json(report.rest.string());
  return json;
}

Exit run_convert(const Request& request, bool json) {
  ConvertOptions options = options_of(request);
  const auto in = newest_checkpoint(request.in);
  Progress progress("convert " + in.string(), 0);
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    progress.tell(done, total);
    return true;
  };
  const ConvertReport report = convert(in, request.out, options);
  progress.finish();
  print(json ? to_text(report_json(report)) + '\n' : report_text(report));
  return Exit::good;
}

}  // namespace

void add_convert(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("convert", kDescription);
  auto request = std::make_shared<Request>();
  ConvertOptions& options = request->options;
  command->add_option("IN", request->in, "What to read")->required();
  command->add_option("OUT", request->out, "What to write; not IN")->required();
  command->add_option("--to", request->to, "torch, safetensors or dcp, whatever OUT's ending says")
      ->check(CLI::IsMember({"torch", "safetensors", "dcp"}));
  command->add_option("--only", options.only, "Only what has this name, and what is below it")
      ->allow_extra_args(false);
  command
      ->add_option("--rename", request->rename,
                   "OLD=NEW: another name; as many * on both sides. The first that fits counts")
      ->allow_extra_args(false);
  command->add_option("--dtype", request->dtype,
                      "Floating-point tensors become this: float64, float32, float16, bfloat16");
  command->add_flag("--strip-optimizer", options.strip_optimizer,
                    "Leaves out the state of optimizers");
  command->add_flag("--rest", options.rest,
                    "safetensors: what they cannot hold goes into OUT.rest.pt");
  command
      ->add_option(
          "--max-shard-size", options.max_shard_size,
          "safetensors: OUT is a directory of files of no more than this (5GB), with index")
      ->transform(CLI::AsSizeValue(true));
  command->add_flag("--force", options.force, "Replaces OUT where it exists");
  command->add_flag("--json", invocation.json, "One JSON object instead of lines");
  command->footer(kFooter);
  command->callback([request, &invocation] {
    invocation.run = [request, &invocation] { return run_convert(*request, invocation.json); };
  });
}

}  // namespace perdure::cli
