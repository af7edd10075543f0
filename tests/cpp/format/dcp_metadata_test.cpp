// .metadata of DCP: what the writer makes is read again, and what contradicts itself is refused.
// What PyTorch writes, in all protocols, is in tests/python/test_dcp.py.
#include "format/dcp_metadata.hpp"

#include <gtest/gtest.h>

#include "expect_error.hpp"
#include "format/dcp_writer.hpp"

namespace perdure::test {
namespace {

using namespace format;

DcpItem tensor(std::string name, KeyPath path, DcpPlace place) {
  return {std::move(name), std::move(path), true,
          DType::bfloat16, {2, 3},          {{{0, 0}, {2, 3}, place}}};
}

DcpMetadata sample() {
  DcpMetadata metadata;
  metadata.files = {"__0_0.distcp", "sub/b"};
  metadata.items = {tensor("a.w", {"a", "w"}, {0, 64, 1000}),
                    {"l.1", {"l", 1}, false, {}, {}, {{{}, {}, {1, 0, 70000}}}},
                    {"l.0", {"l", 0}, false, {}, {}, {{{}, {}, {1, std::uint64_t{1} << 40, 1}}}}};
  return metadata;
}

TEST(DcpMetadata, IsReadAsItWasWritten) {
  const DcpMetadata read = read_dcp_metadata(write_dcp_metadata(sample()));
  EXPECT_EQ(read.files, sample().files);
  ASSERT_EQ(read.items.size(), 3u);
  const DcpItem& first = read.items[0];
  EXPECT_TRUE(first.is_tensor);
  EXPECT_EQ(first.dtype, DType::bfloat16);
  EXPECT_EQ(first.shape, (std::vector<std::int64_t>{2, 3}));
  ASSERT_EQ(first.chunks.size(), 1u);
  EXPECT_EQ(first.chunks[0].place.offset, 64u);
  EXPECT_EQ(first.chunks[0].place.length, 1000u);
  EXPECT_EQ(format_path(first.path), "state['a']['w']");
  EXPECT_EQ(format_path(read.items[1].path), "state['l'][1]");
  EXPECT_EQ(read.items[2].chunks[0].place.offset, std::uint64_t{1} << 40);
  EXPECT_EQ(read.items[2].chunks[0].place.file, 1u);
}

// As several ranks have it: boxes of one tensor in several files, in any order.
TEST(DcpMetadata, ATensorMayLieInManyChunks) {
  DcpMetadata metadata;
  for (int rank = 0; rank < 300; ++rank)
    metadata.files.push_back("__" + std::to_string(rank) + "_0.distcp");
  DcpItem rows{"m.rows", {"m", "rows"}, true, DType::float32, {300, 5}, {}};
  for (std::size_t i = 0; i < 300; ++i) {
    const std::size_t row = i * 7 % 300;
    rows.chunks.push_back({{static_cast<std::int64_t>(row), 0}, {1, 5}, {row, 64 * i, 1000 + i}});
  }
  DcpItem mesh{"m.mesh", {"m", "mesh"}, true, DType::int8, {4, 6, 2}, {}};
  for (std::int64_t i = 0; i < 2; ++i)
    for (std::int64_t j = 0; j < 3; ++j)
      mesh.chunks.push_back(
          {{2 * i, 2 * j, 0}, {2, 2, 2}, {static_cast<std::size_t>(3 * i + j), 1u << 20, 1234}});
  const DcpItem scalar{"m.scalar", {"m", "scalar"},      true, DType::float64,
                       {},         {{{}, {}, {1, 0, 9}}}};
  const DcpItem empty{"m.empty",      {"m", "empty"}, true,
                      DType::float64, {0, 3},         {{{0, 0}, {0, 3}, {2, 0, 9}}}};
  metadata.items = {rows, mesh, scalar, empty};
  const DcpMetadata read = read_dcp_metadata(write_dcp_metadata(metadata));
  ASSERT_EQ(read.items.size(), 4u);
  for (std::size_t item = 0; item < 3; ++item) {
    EXPECT_EQ(read.items[item].shape, metadata.items[item].shape);
    EXPECT_EQ(read.items[item].dtype, metadata.items[item].dtype);
    ASSERT_EQ(read.items[item].chunks.size(), metadata.items[item].chunks.size());
    for (std::size_t i = 0; i < metadata.items[item].chunks.size(); ++i) {
      const DcpChunk& was = metadata.items[item].chunks[i];
      const DcpChunk& is = read.items[item].chunks[i];
      EXPECT_EQ(is.offsets, was.offsets);
      EXPECT_EQ(is.sizes, was.sizes);
      EXPECT_EQ(read.files[is.place.file], metadata.files[was.place.file]);
      EXPECT_EQ(is.place.offset, was.place.offset);
      EXPECT_EQ(is.place.length, was.place.length);
    }
  }
  EXPECT_EQ(read.items[3].shape, (std::vector<std::int64_t>{0, 3}));
}

TEST(DcpMetadata, RefusesChunksThatAreNotTheTensor) {
  const auto refused = [](const std::string& part, std::vector<DcpChunk> chunks) {
    DcpMetadata metadata;
    metadata.files = {"a"};
    metadata.items = {{"w", {"w"}, true, DType::float32, {4, 4}, std::move(chunks)}};
    EXPECT_ERROR(corrupt, part, read_dcp_metadata(write_dcp_metadata(metadata)));
  };
  const DcpChunk upper{{0, 0}, {2, 4}, {0, 0, 99}}, lower{{2, 0}, {2, 4}, {0, 128, 99}};
  refused("'w'", {upper});
  refused("'w'", {upper, upper});
  refused("'w'", {upper, lower, {{1, 1}, {1, 1}, {0, 256, 99}}});
  refused("'w'", {upper, {{3, 0}, {2, 4}, {0, 128, 99}}});
  refused("'w'", {upper, {{1, 0}, {2, 4}, {0, 128, 99}}});
  refused("'w'", {upper, {{2}, {2}, {0, 128, 99}}});
  refused(".metadata", {upper, {{-2, 0}, {2, 4}, {0, 128, 99}}});
}

TEST(DcpMetadata, NoCutPickleIsTaken) {
  const std::string whole = write_dcp_metadata(sample());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Error error = error_of([&] { read_dcp_metadata(whole.substr(0, size)); });
    EXPECT_EQ(error.code(), ErrorCode::corrupt) << size << ": " << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with(".metadata: ")) << error.what();
  }
}

TEST(DcpMetadata, RefusesWhatIsNoMetadata) {
  EXPECT_ERROR(corrupt, "Metadata of an unknown form", read_dcp_metadata("\x80\x02}."));
  EXPECT_ERROR(corrupt, "Metadata of an unknown form",
               read_dcp_metadata("\x80\x02"
                                 "cos\nsystem\n)R."));
  // Of a class of that name elsewhere.
  EXPECT_ERROR(corrupt, "Metadata of an unknown form",
               read_dcp_metadata("\x80\x02"
                                 "c__main__\nMetadata\n)\x81}b."));
  EXPECT_ERROR(corrupt, "storage_data of an unknown form",
               read_dcp_metadata("\x80\x02"
                                 "ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}b."));
}

TEST(DcpMetadata, RefusesFilesElsewhere) {
  for (const char* path : {"../x", "/x", "a/../../x", "", ".", "a//b", "a/./b", "..", "a/"}) {
    DcpMetadata metadata = sample();
    metadata.files[0] = path;
    EXPECT_ERROR(invalid, "is not in the directory",
                 read_dcp_metadata(write_dcp_metadata(metadata)));
  }
}

TEST(DcpMetadata, SaysNotAllOfALongName) {
  DcpMetadata metadata = sample();
  metadata.files[0] = std::string(1'000'000, 'x');
  const Error error = error_of([&] { read_dcp_metadata(write_dcp_metadata(metadata)); });
  EXPECT_EQ(error.code(), ErrorCode::corrupt);
  EXPECT_LT(std::string_view(error.what()).size(), 1000u);
}

TEST(DcpMetadata, RefusesTwoOfOneName) {
  DcpMetadata metadata = sample();
  metadata.items[1].name = metadata.items[2].name;
  EXPECT_ERROR(corrupt, "is in two places", read_dcp_metadata(write_dcp_metadata(metadata)));
}

TEST(DcpState, IsNestedAgain) {
  const std::vector<DcpItem> items = sample().items;
  const Value state = join_dcp_state(items, {1, 2, 3});
  EXPECT_EQ(state["a"]["w"].as_int(), 1);
  ASSERT_EQ(state["l"].kind(), Kind::list);
  EXPECT_EQ(state["l"][0].as_int(), 3);
  EXPECT_EQ(state["l"][1].as_int(), 2);
  EXPECT_TRUE(join_dcp_state({}, {}).as_dict().empty());
}

TEST(DcpState, HasOneValueInAPlace) {
  const auto refused = [](KeyPath a, KeyPath b) {
    const std::vector<DcpItem> items{tensor("a", std::move(a), {}), tensor("b", std::move(b), {})};
    EXPECT_ERROR(corrupt, "two values", join_dcp_state(items, {1, 2}));
  };
  refused({"x"}, {"x"});
  refused({"x"}, {"x", "y"});
  refused({"x", "y"}, {"x"});
  refused({"x", "y"}, {"x", 0});
  const std::vector<DcpItem> far{tensor("a", {"x", 1000}, {})};
  EXPECT_ERROR(corrupt, "cannot have", join_dcp_state(far, {1}));
}

}  // namespace
}  // namespace perdure::test
