// How --help looks.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>

namespace perdure::cli {

// Fills lines up to 80 columns, says what each subcommand does in a sentence, and leaves out what
// only a program would want to know. Lines that begin with a space are left as they are.
std::shared_ptr<CLI::FormatterBase> help_formatter();

}  // namespace perdure::cli
