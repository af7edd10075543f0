// Short words for what the tests do with a Storage all the time.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "expect_error.hpp"
#include "storage/storage.hpp"

namespace perdure::test {

inline ConstBytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

inline void put(storage::Storage& storage, const std::string& name, const std::string& content,
                storage::IfExists if_exists = storage::IfExists::replace) {
  auto replacement = storage.create(name, content.size(), if_exists);
  const std::size_t half = content.size() / 2;
  replacement->append(bytes_of(content).first(half));
  replacement->append(bytes_of(content).subspan(half));
  replacement->commit();
}

inline std::string get(const storage::Storage& storage, const std::string& name) {
  const auto source = storage.open(name);
  std::string content(source->size(), '?');
  source->read(0, std::as_writable_bytes(std::span(content)));
  return content;
}

inline std::map<std::string, std::uint64_t> listed(const storage::Storage& storage) {
  std::map<std::string, std::uint64_t> sizes;
  for (const auto& entry : storage.list()) sizes[entry.name] = entry.size;
  return sizes;
}

}  // namespace perdure::test
