// perdure convert IN OUT: another format, or a part of what is there.
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <perdure/convert.hpp>

#include "command.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kDescription =
    "Writes what is in IN to OUT in another format, or a part of it. IN: a PyTorch file, "
    "safetensors\n"
    "(also an index, or a directory that has one), a directory of torch.distributed.checkpoint "
    "(DCP),\n"
    "a run directory (its newest). OUT's ending says the format: .pt, .pth, .bin, .ckpt PyTorch's "
    "own;\n"
    ".safetensors; none a DCP directory. Tensors stream through: files larger than memory are "
    "fine.";
constexpr const char* kFooter =
    "Names are keys joined by dots; * stands for any run of characters.\n"
    "Examples:\n"
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

// What a signal handler may touch.
std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

// Ctrl-C and a polite kill end the conversion between two blocks, so that nothing is left.
class InterruptWatch {
 public:
  InterruptWatch() {
    struct sigaction action = {};
    action.sa_handler = [](int) { interrupted = true; };
    for (int i = 0; i < 2; ++i) ::sigaction(kSignals[i], &action, &before_[i]);
  }
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;
  ~InterruptWatch() {
    for (int i = 0; i < 2; ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kSignals[2] = {SIGINT, SIGTERM};
  struct sigaction before_[2];
};

// One line on a terminal, for what takes longer than a second.
class Progress {
 public:
  ~Progress() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  bool tell(std::uint64_t done, std::uint64_t total) {
    const Clock::time_point now = Clock::now();
    if (is_terminal_ && now - begin_ > std::chrono::seconds(1) &&
        now - last_ > std::chrono::milliseconds(100))
      show(done, total, now);
    return !interrupted;
  }

 private:
  void show(std::uint64_t done, std::uint64_t total, Clock::time_point now) {
    last_ = now;
    shown_ = true;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const double rate = static_cast<double>(done) / seconds;
    const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
    std::fputs(
        fmt::format("\r{} of {}  {}/s  {} left\x1b[K", format_bytes(done), format_bytes(total),
                    format_bytes(static_cast<std::uint64_t>(rate)), format_age(left))
            .c_str(),
        stderr);
    std::fflush(stderr);
  }

  bool is_terminal_ = ::isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_ = begin_;
};

std::string report_text(const ConvertReport& report) {
  std::string text = fmt::format("wrote  {}  ({}, {})\n", escape(report.path.string()),
                                 plural(report.tensors, "tensor"), format_bytes(report.bytes));
  if (!report.rest.empty())
    text +=
        fmt::format("wrote  {}  (what safetensors cannot hold)\n", escape(report.rest.string()));
  for (const std::string& name : report.left_out)
    text += fmt::format("left out  {}\n", escape(shorten(name, 200)));
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
  const InterruptWatch watch;
  ConvertReport report;
  {
    Progress progress;
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      return progress.tell(done, total);
    };
    report = convert(request.in, request.out, options);
  }
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
