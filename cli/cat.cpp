// perdure cat FILE KEY: one tensor as .npy to standard output.
#include <fmt/format.h>
#include <unistd.h>

#include <perdure/npy.hpp>

#include "command.hpp"
#include "progress.hpp"
#include "run_directory.hpp"

namespace perdure::cli {
namespace {

constexpr const char* kDescription =
    "Writes one tensor to standard output in numpy's .npy format, its checksums compared. Of a run "
    "directory, it is one of the newest checkpoint.";
constexpr const char* kFooter =
    "KEY is the tensor's name as `perdure show` gives it: keys joined with dots.\n"
    "--dtype is for dtypes that numpy lacks: float32 holds every value of bfloat16 and float8 "
    "exactly, complex64 of complex32; uint8 (or uint16) gets the bits of any dtype of that size "
    "that numpy lacks.\n"
    "Exit code: 0 written; 1 the file is damaged (what was written is to be thrown away); 2 it "
    "could not be read.\n"
    "Example:\n"
    "  perdure cat model.pt model.fc.weight > weight.npy\n"
    "  perdure cat --dtype float32 runs/gpt model.fc.weight | python -c \\\n"
    "    'import io, sys, numpy; print(numpy.load(io.BytesIO(sys.stdin.buffer.read())).std())'";

struct Request {
  std::string path, key, dtype;
};

NpyOptions options_of(const Request& request) {
  NpyOptions options;
  if (request.dtype.empty()) return options;
  options.dtype = dtype_from_name(request.dtype);
  if (!options.dtype)
    throw Error(ErrorCode::invalid, fmt::format("no dtype is called '{}'", request.dtype));
  return options;
}

Exit run_cat(const Request& request) {
  if (::isatty(STDOUT_FILENO) == 1)
    throw Error(
        ErrorCode::invalid,
        "standard output is a terminal, and .npy is binary: write it to a file, "
        "`perdure cat FILE KEY > tensor.npy`; to see values: perdure show --values FILE KEY");
  const NpyOptions options = options_of(request);
  const CheckpointFile file = open_newest(request.path);
  Progress progress("cat " + request.key, 0);
  write_npy(
      file, request.key,
      [&](ConstBytes bytes) {
        print({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
        progress.add(bytes.size());
      },
      options);
  return Exit::good;
}

}  // namespace

void add_cat(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("cat", kDescription);
  auto request = std::make_shared<Request>();
  command->add_option("FILE", request->path, "File, or run directory")->required();
  command->add_option("KEY", request->key, "Name of the tensor")->required();
  command->add_option("--dtype", request->dtype, "Write another dtype, which holds every value");
  command->footer(kFooter);
  command->callback(
      [request, &invocation] { invocation.run = [request] { return run_cat(*request); }; });
}

}  // namespace perdure::cli
