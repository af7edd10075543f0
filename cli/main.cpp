// The perdure command: looks into checkpoints, checks, converts, repairs and prunes them. It
// executes nothing that is in a file.
#include <csignal>
#include <cstdio>
#include <new>
#include <perdure/perdure.hpp>

#include "command.hpp"
#include "help.hpp"
#include "progress.hpp"

namespace perdure::cli {
namespace {

constexpr const char* kDescription =
    "Looks into PyTorch checkpoints, checks, compares, converts, repairs and prunes them, without "
    "Python, and without executing anything that is in a file.";
constexpr const char* kFooter =
    "Exit code: 0 good, 1 damage found, 2 could not run (or nothing there that can be checked).\n"
    "Example:\n"
    "  perdure ls runs/gpt && perdure verify runs/gpt";

int exit_code(Exit exit) { return static_cast<int>(exit); }

int report(const Error& error, bool json) {
  complain(error.what());
  if (json) {
    // Where standard output is what failed, there is no one left to tell.
    std::fputs((to_text({{"error", error_json(error)}}) + "\n").c_str(), stdout);
    std::fflush(stdout);
  }
  return exit_code(exit_for(error));
}

int run(const Invocation& invocation) {
  try {
    const Exit exit = invocation.run();
    flush_output();
    return exit_code(exit);
  } catch (const Interrupted& interrupted) {
    return 128 + interrupted.signal;
  } catch (const Error& error) {
    return report(error, invocation.json);
  } catch (const std::bad_alloc&) {
    return report(Error(ErrorCode::full, "out of memory"), invocation.json);
  } catch (const std::exception& error) {
    return report(Error(ErrorCode::io, error.what()), invocation.json);
  }
}

int parse_and_run(int argc, char** argv) {
  CLI::App app(kDescription, "perdure");
  Invocation invocation;
  app.set_version_flag("--version", std::string("perdure ") + PERDURE_VERSION);
  app.formatter(help_formatter());
  app.require_subcommand(1);
  app.footer(kFooter);
  add_cat(app, invocation);
  add_convert(app, invocation);
  add_diff(app, invocation);
  add_ls(app, invocation);
  add_prune(app, invocation);
  add_repair(app, invocation);
  add_show(app, invocation);
  add_stats(app, invocation);
  add_verify(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and the version arrive as "errors" too; app.exit prints all of them where they belong.
    return app.exit(error) == 0 ? 0 : exit_code(Exit::could_not_run);
  }
  return run(invocation);
}

}  // namespace
}  // namespace perdure::cli

int main(int argc, char** argv) {
  // `perdure show x.pt | head` should end without a word, as cat does, also under a parent that
  // ignores SIGPIPE.
  std::signal(SIGPIPE, SIG_DFL);
  return perdure::cli::parse_and_run(argc, argv);
}
