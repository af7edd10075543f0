// The format of torch.save before 1.6, and what contradicts itself in it.
#include <gtest/gtest.h>

#include "expect_error.hpp"
#include "format/coding.hpp"
#include "format/memory_source.hpp"
#include "format/pickle_text.hpp"

namespace perdure::test {
namespace {

using namespace text;
using namespace std::literals;

const std::string kMagic = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."s;

std::string legacy_storage(std::string_view type, std::string_view key, std::int64_t count,
                           const std::string& view = kNone) {
  return tuple({string("storage"), global("torch", type), string(key), string("cpu"),
                integer(count), view}) +
         "Q";
}

std::string bytes_of(std::uint64_t count, std::string_view bytes) {
  std::string out;
  format::put<std::uint64_t>(out, count);
  return out.append(bytes);
}

// The parts of a file, each of which a test may replace.
struct Parts {
  std::string magic = kMagic;
  std::string version = pickle(integer(1001));
  std::string machine = pickle(dict({string("little_endian"), kTrue}));
  std::string object = pickle(dict(
      {string("w"), tensor(legacy_storage("FloatStorage", "7", 6), 0, {2, 3}, {3, 1}),
       string("row"), tensor(legacy_storage("FloatStorage", "7", 6), 3, {3}, {1}), string("n"),
       tensor(legacy_storage("LongStorage", "8", 1), 0, {}, {}), string("epoch"), integer(3)}));
  std::string keys = pickle(list({string("8"), string("7")}));
  std::string storages = bytes_of(1, "lonelong") + bytes_of(6, "floaFLOATS..........sixf");

  std::string text() const { return magic + version + machine + object + keys + storages; }
};

CheckpointFile opened(const Parts& parts, bool allow_opaque = false) {
  return CheckpointFile::open(source_of(parts.text()), allow_opaque);
}

std::string bytes_in(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.storage->data), tensor.storage->size};
}

TEST(Legacy, IsReadWithWhatItShares) {
  const Parts parts;
  const Value state = load_bytes(parts.text());
  EXPECT_EQ(state["epoch"].as_int(), 3);
  const Tensor &w = state["w"].as_tensor(), &row = state["row"].as_tensor();
  EXPECT_EQ(w.storage, row.storage);
  EXPECT_EQ(row.storage_offset, 3);
  EXPECT_EQ(bytes_in(w), "floaFLOATS..........sixf");
  EXPECT_EQ(bytes_in(state["n"].as_tensor()), "lonelong");
  const CheckpointFile file = opened(parts);
  EXPECT_EQ(file.format(), "PyTorch legacy");
  EXPECT_FALSE(file.has_checksums());
  ASSERT_EQ(file.records().size(), 2u);  // in the order of the file
  EXPECT_EQ(file.records()[0].name, "data/8");
  EXPECT_EQ(file.records()[1].offset + file.records()[1].size, file.size());
}

TEST(Legacy, IsSoundButUnchecked) {
  const VerifyReport report = verify(source_of(Parts().text()));
  EXPECT_EQ(report.state, VerifyReport::State::unchecked);
  EXPECT_EQ(report.tensors, 3u);
  EXPECT_EQ(report.bytes, 32u);
}

TEST(Legacy, EveryProtocolAndMachine) {
  Parts parts;
  parts.machine = pickle(dict({string("little_endian"), kFalse}));
  EXPECT_EQ(load_bytes(parts.text())["epoch"].as_int(), 3);  // its bytes are little-endian
  for (const char* head :
       {"\x80\x03", "\x80\x04\x95\x0d\0\0\0\0\0\0\0", "\x80\x05\x95\x0d\0\0\0\0\0\0\0"}) {
    parts.magic = std::string(head, head[1] == 3 ? 2 : 11) + kMagic.substr(2);
    EXPECT_EQ(load_bytes(parts.text())["epoch"].as_int(), 3);
  }
  parts.version = pickle(integer(1002));
  EXPECT_ERROR(unsupported, "version 1002 of PyTorch's legacy format (at offset 24)",
               opened(parts));
  parts.version = pickle(string("1001"));
  EXPECT_ERROR(unsupported, "version '1001'", opened(parts));
}

// Of before 0.4: a storage could be a part of another one.
TEST(Legacy, AViewIsAPartOfItsStorage) {
  const auto viewed = [](std::int64_t first, std::int64_t count, std::int64_t offset,
                         std::int64_t size) {
    Parts parts;
    const std::string view = tuple({string("9"), integer(first), integer(count)});
    parts.object = pickle(dict(
        {string("v"), tensor(legacy_storage("FloatStorage", "7", 6, view), offset, {size}, {1}),
         string("n"), tensor(legacy_storage("LongStorage", "8", 1), 0, {}, {})}));
    return load_bytes(parts.text());
  };
  const Value state = viewed(2, 3, 1, 2);
  EXPECT_EQ(state["v"].as_tensor().storage_offset, 3);
  EXPECT_EQ(state["v"].as_tensor().storage->size, 24u);
  EXPECT_EQ(viewed(6, 0, 0, 0)["v"].as_tensor().numel(), 0u);
  EXPECT_ERROR(corrupt, "reaches to byte 24 of a storage of 20", viewed(2, 3, 1, 3));
  EXPECT_ERROR(corrupt, "a view that reaches outside", viewed(2, 5, 0, 1));
  EXPECT_ERROR(corrupt, "a view that reaches outside", viewed(-1, 1, 0, 1));
  EXPECT_ERROR(corrupt, "a view that reaches outside", viewed(1, INT64_MAX, 0, 1));
  EXPECT_ERROR(corrupt, "an impossible offset", viewed(2, 3, INT64_MAX, 1));
  EXPECT_ERROR(corrupt, "an impossible offset", viewed(2, 3, -1, 1));
}

TEST(Legacy, PartsThatContradictEachOther) {
  struct Case {
    const char* says;
    void (*change)(Parts&);
  };
  const Case cases[] = {
      {"has 7 elements here, and 6 where a tensor refers to it",
       [](Parts& p) { p.storages = bytes_of(1, "lonelong") + bytes_of(7, std::string(28, 'x')); }},
      {"has 18446744073709551615 elements here",
       [](Parts& p) { p.storages = bytes_of(UINT64_MAX, ""); }},
      {"the file ends after 23 of them", [](Parts& p) { p.storages.pop_back(); }},
      {"the file ends before its last storage", [](Parts& p) { p.storages.resize(16 + 7); }},
      {"1 bytes after the last storage", [](Parts& p) { p.storages += "x"; }},
      {"has '9', which no tensor refers to",
       [](Parts& p) { p.keys = pickle(list({string("9")})); }},
      {"stands in it twice",
       [](Parts& p) {
         p.keys = pickle(list({string("8"), string("8")}));
         p.storages = bytes_of(1, "lonelong") + bytes_of(1, "lonelong");
       }},
      {"has 7, which no tensor refers to", [](Parts& p) { p.keys = pickle(list({integer(7)})); }},
      {"the bytes of storage '7' are not there",
       [](Parts& p) { p.keys = pickle(list({string("8")})); }},
      {"the list of storages is no list", [](Parts& p) { p.keys = pickle(kNone); }},
      {"does not end", [](Parts& p) { p.object = "\x80\x02X\xff\xff\xff\xff"; }},
      {"does not end", [](Parts& p) { p.object = "\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff"; }},
      {"the object, state['w']: the record 'data/7' has",
       [](Parts& p) {
         p.object = pickle(
             dict({string("v"), tensor(legacy_storage("FloatStorage", "7", 6), 0, {6}, {1}),
                   string("w"), tensor(legacy_storage("FloatStorage", "7", 5), 0, {5}, {1})}));
       }},
  };
  for (const Case& test : cases) {
    Parts parts;
    test.change(parts);
    EXPECT_ERROR(corrupt, test.says, opened(parts));
    EXPECT_EQ(verify(source_of(parts.text())).state, VerifyReport::State::damaged) << test.says;
  }
}

TEST(Legacy, CutAtEveryByteItIsDamaged) {
  const std::string whole = Parts().text();
  for (std::size_t size = kMagic.size(); size < whole.size(); ++size)
    EXPECT_EQ(error_of([&] { load_bytes(whole.substr(0, size)); }).code(), ErrorCode::corrupt)
        << size;
}

TEST(Legacy, ACountThatOverflowsIsNoStorage) {
  Parts parts;
  parts.object =
      pickle(tensor(legacy_storage("DoubleStorage", "7", std::int64_t{1} << 61), 0, {1}, {1}));
  parts.keys = pickle(list({string("7")}));
  EXPECT_ERROR(corrupt, "not 2305843009213693952 elements", opened(parts));
  parts.object =
      pickle(tensor(legacy_storage("DoubleStorage", "7", std::int64_t{1} << 60), 0, {1}, {1}));
  parts.storages = bytes_of(std::uint64_t{1} << 60, "12345678");
  EXPECT_ERROR(corrupt, "the file ends after 8 of them", opened(parts));
}

// What is no plain data is shown by name, also where the file has the text of its class.
TEST(Legacy, AClassOfTheUsersIsShownAndNotRun) {
  Parts parts;
  const std::string type =
      tuple({string("module"), global("__main__", "Net"), string("net.py"), string("class Net:")}) +
      "Q";
  parts.object = pickle(type + ")\x81" + dict({string("a"), integer(1)}) + "b");
  parts.keys = pickle("]");
  parts.storages.clear();
  EXPECT_ERROR(unsupported, "<'__main__'.'Net'>", opened(parts));
  const CheckpointFile shown = opened(parts, true);
  EXPECT_EQ(shown.value().as_opaque().module + "." + shown.value().as_opaque().name,
            "__main__.Net");
  EXPECT_EQ(shown.value().as_opaque().state["a"].as_int(), 1);
}

// A storage of it is somewhere, and has bytes; that is no damage.
TEST(Legacy, WhatOnlyTheUserKnowsMayHaveStorages) {
  Parts parts;
  parts.object = pickle(dict({string("a"), legacy_storage("UnknownStorage", "8", 1)}));
  EXPECT_ERROR(unsupported, "not plain data", opened(parts));
  EXPECT_ERROR(unsupported, "belongs to what is no plain data", opened(parts, true));
}

}  // namespace
}  // namespace perdure::test
