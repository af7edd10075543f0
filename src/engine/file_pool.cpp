#include "engine/file_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

namespace perdure::engine {
namespace {

// Each takes two descriptors at most. A process has 1024, mostly.
constexpr std::size_t kMaxOpen = 64;
constexpr std::string_view kBlobs = "../../blobs/";

}  // namespace

class PooledFile final : public Source {
 public:
  PooledFile(std::shared_ptr<FilePool> pool, std::string relative, bool hub_links)
      : pool_(std::move(pool)),
        relative_(std::move(relative)),
        hub_links_(hub_links),
        name_(pool_->path_of(relative_)),
        size_(opened()->size()) {}

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override {
    opened()->read(offset, into);
  }
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override {
    return opened()->read_bulk(offset, into, scratch);
  }
  bool is_cached() const override { return opened()->is_cached(); }
  void will_read(std::uint64_t offset, std::uint64_t size) const override {
    opened()->will_read(offset, size);
  }

 private:
  std::shared_ptr<const Source> opened() const { return pool_->opened(relative_, hub_links_); }

  std::shared_ptr<FilePool> pool_;
  std::string relative_;
  bool hub_links_;
  std::string name_;
  std::uint64_t size_;
};

std::shared_ptr<FilePool> FilePool::open(const std::filesystem::path& directory) {
  return std::shared_ptr<FilePool>(
      new FilePool(io::Directory::open(io::real_system(), directory.string())));
}

std::shared_ptr<const Source> FilePool::source(std::string relative, bool hub_links) {
  return std::make_shared<PooledFile>(shared_from_this(), std::move(relative), hub_links);
}

std::shared_ptr<const Source> FilePool::opened(const std::string& relative, bool hub_links) {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(opened_, relative, &Opened::relative);
  if (found != opened_.end()) {
    opened_.splice(opened_.begin(), opened_, found);
  } else {
    opened_.push_front({relative, open_now(relative, hub_links)});
    if (opened_.size() > kMaxOpen) opened_.pop_back();
  }
  return opened_.front().source;
}

std::shared_ptr<const Source> FilePool::open_now(const std::string& relative, bool hub_links) const
    try {
  io::System& system = directory_.system();
  std::string target;
  if (hub_links && system.readlinkat(directory_.fd(), relative.c_str(), target) > 0 &&
      target.starts_with(kBlobs) && target.find('/', kBlobs.size()) == target.npos)
    return io::open_source(system, directory_.fd(), target.c_str(), O_NOFOLLOW,
                           directory_.path_of(relative));
  return io::open_beneath(system, directory_.fd(), relative, directory_.path_of(relative));
} catch (const Error& error) {
  if (error.errno_value() != ELOOP) throw;
  throw Error(ErrorCode::invalid,
              fmt::format("'{}' is a symbolic link, which may lead anywhere; the files of a "
                          "checkpoint are read only where they stand",
                          directory_.path_of(relative)),
              ELOOP);
}

}  // namespace perdure::engine
