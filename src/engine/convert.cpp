#include <fmt/format.h>

#include <algorithm>
#include <perdure/checkpoint_manager.hpp>
#include <perdure/convert.hpp>
#include <unordered_set>

#include "engine/changed_tensors.hpp"
#include "engine/chosen_names.hpp"
#include "engine/file_records.hpp"
#include "engine/rank_view.hpp"
#include "engine/save_dcp.hpp"
#include "engine/save_file.hpp"
#include "engine/save_safetensors.hpp"
#include "storage/local_storage.hpp"

namespace perdure {
namespace {

namespace fs = std::filesystem;

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

FileFormat format_by_name(const fs::path& out) {
  const std::string name = (out.has_filename() ? out : out.parent_path()).filename().string();
  const std::size_t dot = name.rfind('.');
  const std::string ending = dot == name.npos || dot == 0 ? "" : name.substr(dot);
  if (ending.empty()) return FileFormat::dcp;
  if (ending == ".safetensors") return FileFormat::safetensors;
  for (const char* known : {".pt", ".pth", ".bin", ".ckpt"})
    if (ending == known) return FileFormat::torch;
  throw Error(ErrorCode::invalid,
              fmt::format("'{}': its ending does not say which format is wanted; say it with `to` "
                          "(--to torch, safetensors or dcp)",
                          out.string()));
}

// A run directory stands for its newest whole checkpoint.
fs::path file_of(const fs::path& in) {
  std::error_code ignored;
  if (!fs::is_directory(in, ignored) || is_checkpoint_directory(in)) return in;
  for (const ListedCheckpoint& entry : list_checkpoints(in))
    if (entry.problem.empty()) return entry.checkpoint.path;
  throw Error(ErrorCode::not_found,
              fmt::format("{}: this directory holds no whole checkpoint of a run, and is none of "
                          "torch.distributed.checkpoint or safetensors",
                          in.string()));
}

// Whether `path` is `folder`, or in it.
bool is_within(const fs::path& path, const fs::path& folder) {
  std::error_code ignored;
  fs::path at = fs::canonical(path, ignored);
  for (; !at.empty(); at = at.parent_path()) {
    if (fs::equivalent(at, folder, ignored)) return true;
    if (at == at.parent_path()) return false;
  }
  return false;
}

// `in` is the file or directory that is read.
void check_paths(const fs::path& in, const fs::path& out, const ConvertOptions& options) {
  std::error_code ignored;
  if (is_within(in, out))
    throw Error(ErrorCode::invalid,
                fmt::format("writing '{}' would replace '{}'; what is read is never changed",
                            out.string(), in.string()));
  if (is_there(out) && !options.force)
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' exists already; choose another name, or replace it with force "
                            "(--force)",
                            out.string()));
  if (fs::is_directory(out, ignored) && !is_checkpoint_directory(out) &&
      !fs::is_empty(out, ignored))
    throw Error(
        ErrorCode::invalid,
        fmt::format("'{}' is a directory of other things than one checkpoint, and replacing "
                    "it would remove them",
                    out.string()));
}

void check_options(const ConvertOptions& options, FileFormat format) {
  if (format != FileFormat::safetensors && (options.rest || options.max_shard_size != 0))
    throw Error(ErrorCode::invalid,
                "rest and max_shard_size are for safetensors; the other formats need neither");
  if (!options.dtype) return;
  for (const DType known : {DType::float64, DType::float32, DType::float16, DType::bfloat16})
    if (options.dtype == known) return;
  throw Error(ErrorCode::invalid,
              fmt::format("dtype: {} is none of float64, float32, float16 and bfloat16",
                          dtype_name(*options.dtype)));
}

// x.rest.pt for x.safetensors.
fs::path rest_path(const fs::path& out) {
  fs::path base = out.has_filename() ? out : out.parent_path();
  if (base.extension() == ".safetensors") base.replace_extension();
  return base += ".rest.pt";
}

class Conversion {
 public:
  Conversion(const fs::path& in, const fs::path& out, const ConvertOptions& options)
      : in_(file_of(in)), out_(out), options_(options), file_(CheckpointFile::open(in_, true)) {
    report_.path = out;
    report_.format = options.to ? *options.to : format_by_name(out);
    check_options(options, report_.format);
    check_paths(in_, out, options);
  }

  ConvertReport run() {
    Value state = chosen();
    count(state);
    file_.stream_all(state);
    if (options_.dtype) state = engine::in_dtype(state, *options_.dtype);
    write(state);
    return std::move(report_);
  }

 private:
  Value chosen() {
    Value state = file_.value();
    // The records of the other ranks go by its names.
    if (file_.ranks() > 1 && has_other_names()) state = engine::without_ranks(state);
    if (options_.strip_optimizer) state = engine::without_optimizers(state, report_.left_out);
    if (!options_.only.empty()) state = engine::choose(state, options_.only);
    if (!options_.rename.empty()) state = engine::move_names(state, options_.rename);
    return state;
  }

  bool has_other_names() const {
    return options_.strip_optimizer || !options_.only.empty() || !options_.rename.empty();
  }

  // What the new one says of itself. From one file to a directory or back, whole, it is the same
  // checkpoint; any other is none of a run any more.
  CheckpointInfo info() const {
    CheckpointInfo info = file_.info().value_or(CheckpointInfo());
    info.metadata = file_.metadata();
    const bool is_whole = !has_other_names() && report_.format != FileFormat::safetensors;
    if (!is_whole) info.ranks = 1;
    if (!options_.rename.empty()) info.optimizers.clear();  // they go by names
    const bool is_split = fs::is_directory(in_) || report_.format == FileFormat::dcp;
    if (file_.info() && is_whole && is_split && !options_.dtype) return info;
    info.generation = info.parent = 0;
    engine::sign(info);
    return info;
  }

  // A state with a name of its own that is perdure's in the checkpoints of several ranks stays as
  // torch.distributed.checkpoint has it.
  std::optional<CheckpointInfo> dcp_info(const Value& state) const {
    if (!file_.info() || (file_.ranks() == 1 && state.contains(engine::kRanksKey)))
      return std::nullopt;
    return info();
  }

  void count(const Value& state) {
    std::unordered_set<const TensorStorage*> seen;
    engine::for_each_tensor(state, [&](const KeyPath&, const Tensor& tensor) {
      ++report_.tensors;
      const std::uint64_t before = itemsize(tensor.dtype);
      const std::uint64_t item =
          options_.dtype && engine::is_real(tensor.dtype) ? itemsize(*options_.dtype) : before;
      if (report_.format != FileFormat::torch)
        report_.bytes += tensor.numel() * item;
      else if (seen.insert(tensor.storage.get()).second)  // whole, whatever the views of it are
        report_.bytes += tensor.storage->size / before * item;
    });
  }

  void told(std::uint64_t done) const {
    if (options_.progress && !options_.progress(std::min(done, report_.bytes), report_.bytes))
      throw Error(ErrorCode::cancelled, "the conversion was cancelled; nothing was written");
  }

  void write(const Value& state) {
    told(0);
    std::uint64_t done = 0;
    const engine::OnBytes on_bytes = [&](std::uint64_t count) { told(done += count); };
    const auto if_exists = options_.force ? storage::IfExists::replace : storage::IfExists::fail;
    io::System& system = io::real_system();
    if (report_.format == FileFormat::torch)
      return write_torch(out_, state, if_exists, [&](std::uint64_t now) { told(now); });
    if (report_.format == FileFormat::dcp)
      return engine::save_dcp(system, out_, state, dcp_info(state), if_exists, on_bytes);
    auto parts = engine::split_for_safetensors(state, options_.rest);
    if (!parts.rest.as_dict().empty()) check_rest(parts.rest);
    // Before the tensors get their name, so that there are both files or none.
    const auto write_rest = [&] {
      if (!report_.rest.empty()) write_torch(report_.rest, parts.rest, if_exists, {});
    };
    if (options_.max_shard_size != 0)
      engine::save_sharded_safetensors(system, out_, std::move(parts.tensors), file_.metadata(),
                                       options_.max_shard_size, if_exists, on_bytes, write_rest);
    else
      engine::save_safetensors(system, out_, std::move(parts.tensors), file_.metadata(), if_exists,
                               on_bytes, write_rest);
  }

  // What cannot be written is told before the tensors are.
  void check_rest(const Value& rest) {
    report_.rest = rest_path(out_);
    check_paths(in_, report_.rest, options_);
    check_paths(out_, report_.rest, options_);
    const CheckpointInfo info;
    const format::Encoder encoder(rest, info);
  }

  void write_torch(const fs::path& path, const Value& state, storage::IfExists if_exists,
                   const std::function<void(std::uint64_t)>& progress) const {
    const storage::FileTarget target = storage::resolve_target(io::real_system(), path);
    const CheckpointInfo info = this->info();
    const format::Encoder encoder(state, info);
    target.folder->collect_debris_of(target.name);
    engine::write_file(*target.folder, target.name, encoder, if_exists, progress);
  }

  fs::path in_, out_;
  const ConvertOptions& options_;
  CheckpointFile file_;
  ConvertReport report_;
};

}  // namespace

ConvertReport convert(const std::filesystem::path& in, const std::filesystem::path& out,
                      const ConvertOptions& options) {
  return Conversion(in, out, options).run();
}

}  // namespace perdure
