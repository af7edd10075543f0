#include "storage/storage_suite.hpp"

#include <cstdint>

#include "storage/storage_access.hpp"

namespace perdure::test {

using storage::IfExists;

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(StorageSuite);

TEST_P(StorageSuite, StartsEmpty) { EXPECT_TRUE(storage->list().empty()); }

TEST_P(StorageSuite, GivesBackWhatWasPut) {
  put(*storage, "a.pt", "hello");
  EXPECT_EQ(get(*storage, "a.pt"), "hello");
  EXPECT_EQ(get(*open_again(), "a.pt"), "hello");
  EXPECT_EQ(listed(*storage), (std::map<std::string, std::uint64_t>{{"a.pt", 5}}));
}

TEST_P(StorageSuite, TakesAnEmptyFile) {
  put(*storage, "empty", "");
  EXPECT_EQ(get(*storage, "empty"), "");
}

TEST_P(StorageSuite, TakesManyMegabytesInOddPieces) {
  std::string content(5'000'003, 'x');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 31 + i / 977);
  put(*storage, "big", content);
  EXPECT_TRUE(get(*storage, "big") == content);
}

TEST_P(StorageSuite, ReplacesAsAWhole) {
  put(*storage, "a.pt", "old content");
  auto replacement = storage->create("a.pt", 3, IfExists::replace);
  replacement->append(bytes_of("new"));
  EXPECT_EQ(get(*storage, "a.pt"), "old content");
  replacement->commit();
  EXPECT_EQ(get(*storage, "a.pt"), "new");
}

TEST_P(StorageSuite, AppendsLines) {
  storage->append_line("log", "one");
  open_again()->append_line("log", "two");
  storage->append_line("log", "");
  EXPECT_EQ(get(*storage, "log"), "one\ntwo\n\n");
}

TEST_P(StorageSuite, ATornLineStaysOneOfItsOwn) {
  put(*storage, "log", "one\nto");
  storage->append_line("log", "three");
  EXPECT_EQ(get(*storage, "log"), "one\nto\nthree\n");
}

TEST_P(StorageSuite, AReaderKeepsWhatItOpened) {
  put(*storage, "a.pt", "old content");
  const auto source = storage->open("a.pt");
  put(*storage, "a.pt", "new");
  storage->remove({"a.pt"});
  std::string content(11, '?');
  source->read(0, std::as_writable_bytes(std::span(content)));
  EXPECT_EQ(content, "old content");
}

TEST_P(StorageSuite, RefusesToReplaceWhenTold) {
  put(*storage, "a.pt", "first");
  EXPECT_ERROR(invalid, "a.pt", put(*storage, "a.pt", "second", IfExists::fail));
  EXPECT_EQ(get(*storage, "a.pt"), "first");
  put(*storage, "b.pt", "free name", IfExists::fail);
  EXPECT_EQ(get(*storage, "b.pt"), "free name");
}

TEST_P(StorageSuite, WhatIsNotCommittedLeavesNoTrace) {
  put(*storage, "a.pt", "old");
  {
    auto replacement = storage->create("a.pt", 8, IfExists::replace);
    replacement->append(bytes_of("half"));
  }
  EXPECT_EQ(get(*storage, "a.pt"), "old");
  EXPECT_EQ(listed(*storage).size(), 1U);
}

TEST_P(StorageSuite, HoldsTheWriterToItsSize) {
  put(*storage, "a.pt", "old");
  auto less = storage->create("a.pt", 4, IfExists::replace);
  less->append(bytes_of("abc"));
  EXPECT_ERROR(invalid, "4 bytes", less->commit());
  auto more = storage->create("a.pt", 4, IfExists::replace);
  EXPECT_ERROR(invalid, "4 bytes", more->append(bytes_of("abcde")));
  EXPECT_EQ(get(*storage, "a.pt"), "old");
}

TEST_P(StorageSuite, ReadsAtAnOffsetAndNotBeyondTheEnd) {
  put(*storage, "a.pt", "0123456789");
  const auto source = storage->open("a.pt");
  std::string part(3, '?');
  source->read(4, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "456");
  EXPECT_ERROR(io, "offset 8", source->read(8, std::as_writable_bytes(std::span(part))));
  EXPECT_ERROR(io, "offset 11", source->read(11, std::as_writable_bytes(std::span(part))));
}

TEST_P(StorageSuite, AbsenceIsNotFoundAndNamed) {
  EXPECT_ERROR(not_found, "none.pt", storage->open("none.pt"));
  EXPECT_ERROR(not_found, "none.pt", storage->rename("none.pt", "other.pt"));
}

TEST_P(StorageSuite, RenamesButNeverOverAnother) {
  put(*storage, "a", "A");
  put(*storage, "b", "B");
  storage->rename("a", "c");
  EXPECT_EQ(get(*storage, "c"), "A");
  EXPECT_EQ(listed(*storage).count("a"), 0U);
  EXPECT_ERROR(invalid, "c", storage->rename("b", "c"));
  EXPECT_EQ(get(*storage, "b"), "B");
  EXPECT_EQ(get(*storage, "c"), "A");
}

TEST_P(StorageSuite, RemovesSeveralAndPassesOverTheAbsent) {
  for (const char* name : {"a", "b", "c"}) put(*storage, name, name);
  storage->remove({"a", "nobody", "c"});
  EXPECT_EQ(listed(*storage), (std::map<std::string, std::uint64_t>{{"b", 1}}));
  storage->remove({});
  put(*storage, "a", "again");
  storage->remove({"a"});
  EXPECT_EQ(listed(*storage).size(), 1U);
}

TEST_P(StorageSuite, DoesNotListHiddenNames) {
  put(*storage, ".hidden", "x");
  EXPECT_TRUE(storage->list().empty());
  EXPECT_EQ(get(*storage, ".hidden"), "x");
}

TEST_P(StorageSuite, RefusesNamesThatAreNone) {
  for (const std::string name : {"", ".", "..", "a/b", "../a"}) {
    EXPECT_ERROR(invalid, "file name", storage->create(name, 1, IfExists::replace));
    EXPECT_ERROR(invalid, "file name", storage->open(name));
    EXPECT_ERROR(invalid, "file name", storage->rename(name, "x"));
    EXPECT_ERROR(invalid, "file name", storage->remove({name}));
  }
  EXPECT_ERROR(invalid, "file name", storage->open(std::string_view("a\0b", 3)));
}

TEST_P(StorageSuite, OneAtATimeHoldsTheLock) {
  const auto other = open_again();
  storage->lock();
  EXPECT_ERROR(locked, "in use", other->lock());
  storage->unlock();
  other->lock();
  EXPECT_ERROR(locked, "in use", storage->lock());
}

TEST_P(StorageSuite, TheLockGoesWithItsHolder) {
  auto other = open_again();
  other->lock();
  other.reset();
  storage->lock();
  EXPECT_TRUE(storage->collect_debris().empty());
}

TEST_P(StorageSuite, DescribesWithTheFullName) {
  EXPECT_EQ(storage->describe("a.pt"), storage->describe("") + "/a.pt");
  put(*storage, "a.pt", "x");
  EXPECT_EQ(storage->open("a.pt")->name(), storage->describe("a.pt"));
}

}  // namespace perdure::test
