// The files of a checkpoint that is made of many: more of them than a process may have open.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <perdure/file.hpp>
#include <string>
#include <vector>

#include "io/directory.hpp"

namespace perdure::engine {

// Opens files in one directory, and closes those that were not used for long. The directory stays
// the one that it was, whatever its path becomes.
class FilePool : public std::enable_shared_from_this<FilePool> {
 public:
  static std::shared_ptr<FilePool> open(const std::filesystem::path& directory);

  // `relative` must not leave the directory; no link is followed, but those that the cache of the
  // Hugging Face hub is made of where `hub_links` says so: to a file of ../../blobs.
  std::shared_ptr<const Source> source(std::string relative, bool hub_links = false);
  // Whether there is something of that name.
  bool has(const std::string& name) const { return directory_.status(name).has_value(); }
  std::vector<std::string> names() const { return directory_.names(); }
  std::string path_of(std::string_view name) const { return directory_.path_of(name); }

 private:
  friend class PooledFile;
  explicit FilePool(io::Directory directory) : directory_(std::move(directory)) {}
  std::shared_ptr<const Source> opened(const std::string& relative, bool hub_links);
  std::shared_ptr<const Source> open_now(const std::string& relative, bool hub_links) const;

  io::Directory directory_;
  std::mutex mutex_;  // of what follows
  struct Opened {
    std::string relative;
    std::shared_ptr<const Source> source;
  };
  std::list<Opened> opened_;  // used last first
};

}  // namespace perdure::engine
