// perdure show FILE [KEY]: what a file holds, without reading its tensors.
#include <fmt/format.h>

#include <filesystem>
#include <perdure/file.hpp>
#include <system_error>

#include "command.hpp"
#include "node_json.hpp"
#include "node_text.hpp"
#include "run_directory.hpp"
#include "text.hpp"
#include "tree.hpp"
#include "values.hpp"

namespace perdure::cli {
namespace {

constexpr const char* kDescription =
    "Shows what a file of perdure or torch.save holds: every key with its type, every tensor with "
    "dtype, shape and bytes, and what shares memory. Nothing in the file is executed: things that "
    "are no plain data are shown as \"opaque\", by name. Of a run directory, the newest checkpoint "
    "is shown.";
constexpr const char* kFooter =
    "KEY is a path of keys joined with dots; it selects what it names and all below. * stands for "
    "any characters (dots too), ? for one.\n"
    "Exit code: 0 shown; 1 the file is damaged; 2 it could not be read, or no key matches.\n"
    "Example:\n"
    "  perdure show runs/gpt\n"
    "  perdure show model.pt 'model.*.weight'\n"
    "  perdure show --values model.pt model.fc.bias";

struct Request {
  std::string path;
  std::string key;
  bool values = false;
};

// The values of what is selected, a tensor once.
void print_values(const CheckpointFile& file, const std::string& key) {
  constexpr std::size_t kMost = 100;
  std::size_t count = 0;
  walk_tree(file.value(), key, [&](const TreeNode& node) {
    if (node.value.kind() != Kind::tensor || !node.same_as.empty() || node.in_attributes) return;
    if (++count <= kMost) print('\n' + values_text(file, node.name, node.value.as_tensor()));
  });
  if (count > kMost)
    print(fmt::format("\nand {} more: select some with a KEY\n", format_count(count - kMost)));
}

std::string top_keys(const Value& root) {
  constexpr std::size_t kNamed = 20;
  std::string out;
  std::size_t count = 0;
  if (!root.is_mapping()) return fmt::format("the file holds a {}", kind_name(root.kind()));
  for (const auto& [key, value] : root.as_dict()) {
    if (count++ == kNamed) return out + ", ...";
    out += (count == 1 ? "its keys are " : ", ") + repr(key);
  }
  return count == 0 ? "it has no keys" : out;
}

// One tensor of many, by the index alone.
bool show_tensor(const std::filesystem::path& file, const std::string& name, Links links) {
  std::error_code none;
  if (name.empty() || name.find_first_of("*?") != std::string::npos ||
      !std::filesystem::is_regular_file(file, none))
    return false;
  const auto tensor = find_tensor(*open_source(file, links), name);
  if (!tensor) return false;
  const Value root = Dict{{name, *tensor}};
  print_tree_text(root, name, summarize(root, name));
  return true;
}

Exit run_show(const Request& request, bool json) {
  const std::filesystem::path path = newest_checkpoint(request.path);
  const Links links = path == request.path ? Links::follow : Links::refuse;
  if (!json && !request.values && show_tensor(path, request.key, links)) return Exit::good;
  const CheckpointFile file = open_checkpoint(request.path, path);
  const Summary summary = summarize(file.value(), request.key);
  if (summary.nodes == 0 && !request.key.empty())
    throw Error(ErrorCode::not_found, fmt::format("{}: no key matches '{}'; {}", file.name(),
                                                  request.key, top_keys(file.value())));
  if (json)
    print_file_json(file, request.key, summary);
  else
    print_file_text(file, request.key, summary);
  if (request.values) print_values(file, request.key);
  return Exit::good;
}

}  // namespace

void add_show(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("show", kDescription);
  auto request = std::make_shared<Request>();
  command->add_option("FILE", request->path, "File, or run directory")->required();
  command->add_option("KEY", request->key, "Only what this pattern matches");
  CLI::Option* values = command->add_flag(
      "--values", request->values,
      "Print the values of tensors, too, as torch does; cut where they are large");
  command->add_flag("--json", invocation.json, "One JSON object instead of a table")
      ->excludes(values);
  command->footer(kFooter);
  command->callback([request, &invocation] {
    invocation.run = [request, &invocation] { return run_show(*request, invocation.json); };
  });
}

}  // namespace perdure::cli
