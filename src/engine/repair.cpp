#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <perdure/checkpoint_manager.hpp>
#include <perdure/repair.hpp>

#include "engine/checkpoint_name.hpp"
#include "engine/salvage.hpp"
#include "engine/save_file.hpp"
#include "engine/structure.hpp"
#include "format/contents.hpp"
#include "storage/local_storage.hpp"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Also where one is a link to the other, symbolic or hard.
bool is_same(const fs::path& a, const fs::path& b) {
  std::error_code ignored;
  return fs::equivalent(a, b, ignored);
}

void check_out(const fs::path& file, const fs::path& out, const RepairOptions& options) {
  for (const fs::path& input : {file, options.like})
    if (!input.empty() && is_same(input, out))
      throw Error(ErrorCode::invalid,
                  fmt::format("'{}' and '{}' are one file, and what repair reads it never changes; "
                              "choose another place for what is saved",
                              input.string(), out.string()));
  std::error_code ignored;
  if (!options.force && fs::exists(out, ignored))
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' exists already; choose another name, or replace it with force "
                            "(--force)",
                            out.string()));
}

std::uint64_t distance(std::uint64_t a, std::uint64_t b) { return a < b ? b - a : a - b; }

// The checkpoint beside `file` that is nearest by generation, and can be read; "" where there is
// none.
std::string sibling_of(const fs::path& file) try {
  const std::uint64_t own = engine::generation_in(file.filename().string());
  std::vector<ListedCheckpoint> listed =
      list_checkpoints(file.has_parent_path() ? file.parent_path() : ".");
  std::erase_if(listed, [&](const ListedCheckpoint& entry) {
    return !entry.problem.empty() || is_same(entry.checkpoint.path, file);
  });
  const auto nearest = std::ranges::min_element(listed, {}, [own](const ListedCheckpoint& entry) {
    return own == 0 ? 0 : distance(entry.checkpoint.generation(), own);
  });
  return nearest == listed.end() ? "" : nearest->checkpoint.path.string();
} catch (const Error&) {
  return "";  // a suggestion is not worth an error
}

std::string advice(const fs::path& file) {
  const std::string sibling = sibling_of(file);
  return "; give another checkpoint that the same program wrote as `like` (--like)" +
         (sibling.empty() ? ", older or newer, or saved anew for this" : ": " + sibling);
}

engine::Salvage salvage(const fs::path& file, const fs::path& like) try {
  return engine::salvage(open_source(file), like.empty() ? nullptr : open_source(like));
} catch (const engine::NamesLost& error) {
  throw Error(error.code(), error.what() + advice(file));
}

}  // namespace

RepairReport repair(const std::filesystem::path& file, const std::filesystem::path& out,
                    const RepairOptions& options) {
  check_out(file, out, options);
  const storage::FileTarget target = storage::resolve_target(io::real_system(), out);
  engine::Salvage found = salvage(file, options.like);
  if (!found.has_info) engine::sign(found.info);
  if (!format::has_records_of(found.state, found.info.ranks)) found.info.ranks = 1;
  const format::Encoder encoder(found.state, found.info);
  target.folder->collect_debris_of(target.name);
  engine::write_file(*target.folder, target.name, encoder,
                     options.force ? storage::IfExists::replace : storage::IfExists::fail);
  return std::move(found.report);
}

}  // namespace perdure
