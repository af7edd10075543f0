// What the subcommands have in common: how they are added, what they exit with, where their output
// goes.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <perdure/file.hpp>
#include <string_view>

namespace perdure::cli {

// The exit code of the command, as in cmp and grep: 1 is an answer, 2 is none.
enum class Exit : int { good = 0, damaged = 1, differs = 1, could_not_run = 2 };
Exit worse(Exit a, Exit b) noexcept;  // damage that was found outweighs what could not be looked at
Exit exit_for(const Error& error) noexcept;

// For a command to which damage is no answer: reports the error and returns could_not_run where it
// is of damage, and throws it on where not. `error` is the one that is being handled.
Exit no_answer(const Error& error, bool json);

// What the command line asks for; the subcommand that is there fills in `run`.
struct Invocation {
  bool json = false;
  std::function<Exit()> run;
};

// Each adds its subcommand to `app`. Both arguments must outlive the parsing and the run.
void add_cat(CLI::App& app, Invocation& invocation);
void add_convert(CLI::App& app, Invocation& invocation);
void add_diff(CLI::App& app, Invocation& invocation);
void add_ls(CLI::App& app, Invocation& invocation);
void add_prune(CLI::App& app, Invocation& invocation);
void add_repair(CLI::App& app, Invocation& invocation);
void add_show(CLI::App& app, Invocation& invocation);
void add_stats(CLI::App& app, Invocation& invocation);
void add_verify(CLI::App& app, Invocation& invocation);

using Json = nlohmann::ordered_json;

// To standard output; Error(io) where that fails. Text must have been escaped.
void print(std::string_view text);
void flush_output();
// One line on standard error, escaped.
void complain(std::string_view text);
// As one line of pure ASCII: bytes that are no UTF-8 become U+FFFD, controls are escaped.
std::string to_text(const Json& json);
// JSON has no NaN and no infinities: they are the strings "nan", "inf" and "-inf".
Json number_json(double value);
Json metrics_json(const Metrics& metrics);
Json error_json(const Error& error);

}  // namespace perdure::cli
