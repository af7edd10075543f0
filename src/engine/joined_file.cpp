#include "engine/joined_file.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "engine/file_pool.hpp"
#include "engine/joined_source.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::engine {
namespace {

namespace fs = std::filesystem;

// That of DeepSeek-V3, with 91,991 tensors, has 8 MB.
constexpr std::uint64_t kMaxIndex = std::uint64_t{64} << 20;
constexpr std::string_view kIndexEnding = ".safetensors.index.json";

std::string read_text(const Source& source, std::uint64_t size) {
  std::string text(size, '\0');
  source.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

bool is_index(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return false;  // opening says what is wrong
  const auto source = open_source(path);
  return format::is_safetensors_index(
      read_text(*source, std::min<std::uint64_t>(source->size(), 64)));
}

// The one index in a directory; "" where there is none.
fs::path index_in(const fs::path& directory) {
  std::vector<std::string> found;
  for (const std::string& name : FilePool::open(directory)->names())
    if (name.ends_with(kIndexEnding) && !name.starts_with('.')) found.push_back(name);
  if (found.size() > 1) {
    std::ranges::sort(found);
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' has several checkpoints: {} and {}; say which",
                            directory.string(), found[0], found[1]));
  }
  return found.empty() ? fs::path() : directory / found[0];
}

}  // namespace

bool is_joined_directory(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return false;
  return fs::exists(path / ".metadata", ignored) || !index_in(path).empty();
}

std::optional<JoinedFile> open_joined(const fs::path& path, bool allow_opaque) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    if (fs::exists(path / ".metadata", ignored)) return open_dcp(path, allow_opaque);
    if (const fs::path index = index_in(path); !index.empty()) return open_safetensors_index(index);
    return std::nullopt;
  }
  if (is_index(path)) return open_safetensors_index(path);
  return std::nullopt;
}

namespace {

class IndexReader {
 public:
  explicit IndexReader(const fs::path& path)
      : path_(path.string()),
        pool_(FilePool::open(path.has_parent_path() ? path.parent_path() : ".")),
        index_(read(path)),
        joined_(std::make_shared<JoinedSource>(path.string())) {}

  JoinedFile open() {
    format::Contents contents;
    contents.format = "safetensors, sharded";
    contents.metadata = index_.metadata;
    Dict value;
    for (std::size_t i = 0; i < index_.files.size(); ++i) add_file(i, contents, value);
    for (const auto& [name, file] : index_.places)
      if (value.find(Value(name)) == nullptr)
        throw Error(ErrorCode::corrupt,
                    fmt::format("{}: the tensor {} should be in {}, and is not there", path_,
                                repr(Value(name)), index_.files[file]));
    contents.value = Value(std::move(value));
    return {joined_, std::move(contents)};
  }

 private:
  static format::SafetensorsIndex read(const fs::path& path) {
    const auto source = open_source(path);
    if (source->size() > kMaxIndex)
      throw Error(ErrorCode::unsupported, fmt::format("{}: an index of {} bytes, more than 64 MiB",
                                                      path.string(), source->size()));
    return format::with_file_name(*source, [&] {
      return format::parse_safetensors_index(read_text(*source, source->size()));
    });
  }

  void add_file(std::size_t number, format::Contents& contents, Dict& value) {
    const auto source = pool_->source(index_.files[number], true);
    format::Safetensors file = format::read_safetensors(*source);
    for (const format::SafetensorsEntry& tensor : file.tensors) {
      const auto it = index_.places.find(tensor.name);
      if (it == index_.places.end() || it->second != number)
        throw Error(
            ErrorCode::corrupt,
            fmt::format("{}: holds the tensor {}, which the index {}", source->name(),
                        repr(Value(tensor.name)),
                        it == index_.places.end() ? "does not name" : "has in another file"));
    }
    const std::uint64_t begin = joined_->append(source, 0, source->size());
    format::with_file_name(*source, [&] { add_safetensors(file, begin, contents, value); });
    contents.metadata.merge(file.metadata);
  }

  std::string path_;
  std::shared_ptr<FilePool> pool_;
  format::SafetensorsIndex index_;
  std::shared_ptr<JoinedSource> joined_;
};

}  // namespace

JoinedFile open_safetensors_index(const fs::path& index) { return IndexReader(index).open(); }

}  // namespace perdure::engine

namespace perdure {

bool is_checkpoint_directory(const std::filesystem::path& path) {
  return engine::is_joined_directory(path);
}

}  // namespace perdure
