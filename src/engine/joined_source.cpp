#include "engine/joined_source.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace perdure::engine {
namespace {

[[noreturn]] void throw_outside(const std::string& name, std::uint64_t offset, std::uint64_t size,
                                std::uint64_t end) {
  throw Error(ErrorCode::io, fmt::format("cannot read {} bytes at offset {} of '{}': it has {} "
                                         "bytes",
                                         size, offset, name, end));
}

bool is_inside(std::uint64_t offset, std::uint64_t size, std::uint64_t end) {
  return offset <= end && size <= end - offset;
}

}  // namespace

SubSource::SubSource(std::shared_ptr<const Source> source, std::uint64_t offset, std::uint64_t size)
    : source_(std::move(source)), offset_(offset), size_(size) {
  if (!is_inside(offset, size, source_->size()))
    throw Error(ErrorCode::corrupt,
                fmt::format("{}: it should have {} bytes at offset {}, and has {} in all; it is "
                            "cut off, or of another checkpoint",
                            source_->name(), size, offset, source_->size()));
}

void SubSource::require_inside(std::uint64_t offset, std::uint64_t size) const {
  if (!is_inside(offset, size, size_))
    throw_outside(name(), offset_ + offset, size, source_->size());
}

void SubSource::read(std::uint64_t offset, MutableBytes into) const {
  require_inside(offset, into.size());
  source_->read(offset_ + offset, into);
}

ConstBytes SubSource::read_bulk(std::uint64_t offset, MutableBytes into,
                                MutableBytes scratch) const {
  require_inside(offset, into.size());
  return source_->read_bulk(offset_ + offset, into, scratch);
}

void SubSource::will_read(std::uint64_t offset, std::uint64_t size) const {
  source_->will_read(offset_ + offset, size);
}

std::shared_ptr<const Source> LateSource::made() const {
  const std::lock_guard guard(mutex_);
  if (!made_) made_ = make_();
  return made_;
}

HeldSource::HeldSource(const Source& source)
    : bytes_(source.size()), name_(source.place(0).name), begin_(source.place(0).offset) {
  source.read(0, bytes_);
}

void HeldSource::read(std::uint64_t offset, MutableBytes into) const {
  if (!is_inside(offset, into.size(), bytes_.size()))
    throw_outside(name_, offset, into.size(), bytes_.size());
  std::copy_n(bytes_.data() + offset, into.size(), into.data());
}

std::uint64_t JoinedSource::append(std::shared_ptr<const Source> source, std::uint64_t offset,
                                   std::uint64_t size) {
  const std::uint64_t begin = size_;
  if (__builtin_add_overflow(size_, size, &size_))
    throw Error(ErrorCode::corrupt, fmt::format("{}: more bytes than there can be", name_));
  if (size > 0) runs_.push_back({begin, std::move(source), offset, size});
  return begin;
}

void JoinedSource::require_inside(std::uint64_t offset, std::uint64_t size) const {
  if (!is_inside(offset, size, size_)) throw_outside(name_, offset, size, size_);
}

const JoinedSource::Run& JoinedSource::run_at(std::uint64_t offset) const {
  return *std::prev(std::ranges::upper_bound(runs_, offset, {}, &Run::begin));
}

void JoinedSource::read(std::uint64_t offset, MutableBytes into) const {
  require_inside(offset, into.size());
  while (!into.empty()) {
    const Run& run = run_at(offset);
    const std::uint64_t in_run = offset - run.begin;
    const MutableBytes part = into.first(std::min<std::uint64_t>(into.size(), run.size - in_run));
    run.source->read(run.offset + in_run, part);
    offset += part.size();
    into = into.subspan(part.size());
  }
}

ConstBytes JoinedSource::read_bulk(std::uint64_t offset, MutableBytes into,
                                   MutableBytes scratch) const {
  require_inside(offset, into.size());
  if (!into.empty()) {
    const Run& run = run_at(offset);
    const std::uint64_t in_run = offset - run.begin;
    if (into.size() <= run.size - in_run)
      return run.source->read_bulk(run.offset + in_run, into, scratch);
  }
  read(offset, into);
  return into;
}

bool JoinedSource::is_cached() const { return !runs_.empty() && runs_[0].source->is_cached(); }

void JoinedSource::will_read(std::uint64_t offset, std::uint64_t size) const {
  if (size == 0 || !is_inside(offset, size, size_)) return;
  const Run& run = run_at(offset);
  const std::uint64_t in_run = offset - run.begin;
  run.source->will_read(run.offset + in_run, std::min(size, run.size - in_run));
}

Place JoinedSource::place(std::uint64_t offset) const {
  if (offset >= size_) return {name_, offset};
  const Run& run = run_at(offset);
  return run.source->place(run.offset + offset - run.begin);
}

}  // namespace perdure::engine
