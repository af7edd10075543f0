// Whether what was saved from a damaged file is honest: bit-equal, or in the list of what is lost.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "engine/file_records.hpp"
#include "engine/salvage.hpp"
#include "format/archive_layout.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"
#include "format/same_value.hpp"

namespace perdure::test {

class SalvageCheck {
 public:
  // `whole` is the state as it was.
  SalvageCheck(const Value& whole, const engine::Salvage& found) {
    for (const Lost& lost : found.report.lost) lost_.insert(lost.path);
    compare(whole, &found.state);
    EXPECT_EQ(found.report.saved.tensors, kept_.size()) << "another count of what was kept";
    expect_same_sharing();
  }

  const std::map<std::string, Tensor>& kept() const { return kept_; }
  const std::set<std::string>& lost() const { return lost_; }

 private:
  bool is_listed() const {
    if (knows_dicts_alone()) return true;
    KeyPath path = path_;
    for (;; path.pop_back()) {
      if (lost_.contains(format_path(path))) return true;
      if (path.empty()) return false;
    }
  }
  void compare_at(const Value& key, const Value& whole, const Value* found) {
    path_.push_back(key);
    compare(whole, found);
    path_.pop_back();
  }
  // `found` is null where there is nothing.
  void compare(const Value& whole, const Value* found) {
    if (found == nullptr || (found->is_none() && !whole.is_none())) {
      EXPECT_TRUE(is_listed()) << format_path(path_) << " is missing and in no list";
      return;
    }
    ASSERT_TRUE(found->kind() == whole.kind() || (knows_dicts_alone() && found->is_mapping()))
        << format_path(path_);
    if (whole.kind() == Kind::tensor) return compare_tensors(whole.as_tensor(), found->as_tensor());
    const auto [seen, fresh] = seen_.try_emplace(whole.identity(), found->identity());
    EXPECT_EQ(seen->second, found->identity()) << format_path(path_) << " is shared no longer";
    if (whole.identity() != nullptr && !fresh) return;
    if (whole.is_mapping()) return compare_dicts(whole.as_dict(), found->as_dict());
    if (whole.kind() == Kind::list || whole.kind() == Kind::tuple)
      return compare_items(whole.as_items(), *found);
    EXPECT_EQ(Comparison::difference(whole, *found), "") << format_path(path_);
  }
  // The names come from the index.
  bool knows_dicts_alone() const { return lost_.contains("state"); }
  void compare_items(const Value::Items& whole, const Value& found) {
    ASSERT_TRUE(found.is_mapping() || whole.size() == found.as_items().size());
    for (std::size_t i = 0; i < whole.size(); ++i)
      compare_at(Value(i), whole[i],
                 found.is_mapping() ? found.as_dict().find(Value(i)) : &found.as_items()[i]);
  }
  void compare_dicts(const Dict& whole, const Dict& found) {
    for (const auto& [key, value] : whole) compare_at(key, value, found.find(key));
    for (const auto& [key, value] : found)
      EXPECT_NE(whole.find(key), nullptr) << format_path(path_) << " has got a key: " << repr(key);
    if (whole.attributes() && found.attributes())
      compare_dicts(*whole.attributes(), *found.attributes());
  }
  void compare_tensors(const Tensor& whole, const Tensor& found) {
    const std::string place = format_path(path_);
    EXPECT_FALSE(lost_.contains(place)) << place << " is kept and in the list of what is lost";
    EXPECT_TRUE(whole.dtype == found.dtype && whole.shape == found.shape &&
                whole.strides == found.strides && whole.conj == found.conj &&
                whole.neg == found.neg && whole.requires_grad == found.requires_grad &&
                whole.parameter == found.parameter)
        << place << " has changed";
    const auto left = whole.byte_range(), right = found.byte_range();
    ASSERT_EQ(left.second - left.first, right.second - right.first) << place;
    if (whole.storage->data != nullptr && left.second > left.first) {
      ASSERT_LE(right.second, found.storage->size) << place;
      EXPECT_EQ(std::memcmp(whole.storage->data + left.first, found.storage->data + right.first,
                            left.second - left.first),
                0)
          << place << " has other bytes";
    }
    kept_[place] = found;
    whole_[place] = whole;
  }
  void expect_same_sharing() const {
    std::map<const TensorStorage*, const TensorStorage*> before, after;
    for (const auto& [place, tensor] : kept_) {
      const TensorStorage *now = tensor.storage.get(), *then = whole_.at(place).storage.get();
      if (now->size == 0) continue;
      EXPECT_EQ(before.try_emplace(now, then).first->second, then) << place << " shares too much";
      EXPECT_EQ(after.try_emplace(then, now).first->second, now) << place << " shares no longer";
    }
  }

  KeyPath path_;
  std::set<std::string> lost_;
  std::map<std::string, Tensor> kept_, whole_;
  std::map<const void*, const void*> seen_;  // containers of the whole state -> of what was found
};

// ---- files and their places

// The records of a file of perdure's in the order in which torch.save writes them, without
// perdure's own.
inline std::string as_torch_writes(const std::string& file) {
  const auto opened = CheckpointFile::open(source_of(file));
  std::vector<CheckpointFile::Record> records = opened.records();
  std::erase_if(records, [](const auto& record) { return record.name.starts_with(".perdure/"); });
  std::ranges::stable_partition(
      records, [](const auto& record) { return !record.name.starts_with("data/"); });
  std::string out;
  std::vector<format::ZipRecord> placed;
  for (const auto& record : records) {
    const std::string content = file.substr(record.offset, record.size);
    format::append_record(placed, "archive/" + record.name, content.size());
    placed.back().crc32 = format::crc32(format::as_bytes(content));
    out += format::local_header(placed.back()) + content + format::data_descriptor(placed.back());
  }
  return out + format::central_directory(placed);
}

inline CheckpointFile::Record record_of(const std::string& file, const std::string& name) {
  const auto opened = CheckpointFile::open(source_of(file));
  for (const auto& record : opened.records())
    if (record.name == name) return record;
  ADD_FAILURE() << "no record " << name;
  return {};
}

// The name of the record whose bytes (not its header or descriptor) are at `offset`, or "".
class RecordMap {
 public:
  explicit RecordMap(const std::string& file)
      : records_(CheckpointFile::open(source_of(file)).records()) {}
  std::string at(std::uint64_t offset) const {
    for (const auto& record : records_)
      if (offset >= record.offset && offset - record.offset < record.size) return record.name;
    return {};
  }

 private:
  std::vector<CheckpointFile::Record> records_;
};

inline engine::Salvage salvaged(const std::string& file, const std::string& like = {}) {
  return engine::salvage(source_of(file), like.empty() ? nullptr : source_of(like));
}

}  // namespace perdure::test
