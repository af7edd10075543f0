// What is found of the records of a zip whose directory is not there, or not to be believed.
#include "format/zip_scan.hpp"

#include <gtest/gtest.h>

#include "format/memory_source.hpp"
#include "format/torch_file.hpp"
#include "format/zip_parts.hpp"

namespace perdure::test {
namespace {

std::vector<format::RecordClaim> scan(const std::string& file) {
  return format::ZipScan(*source_of(file)).claims();
}
std::vector<format::RecordClaim> scan(const std::string& file, const std::string& name) {
  std::vector<format::RecordClaim> claims = scan(file);
  std::erase_if(claims, [&](const auto& claim) { return claim.name != name; });
  return claims;
}

TEST(ZipScan, FindsEachRecordByItsHeaderAndByTheDirectory) {
  const auto claims = scan(kTorchFile, "data/0");
  ASSERT_EQ(claims.size(), 2u);
  for (const auto& claim : claims) {
    EXPECT_EQ(claim.data_offset, 0x300u);
    EXPECT_EQ(claim.size, 24u);
    EXPECT_EQ(claim.crc32, crc_of(kTorchFile.substr(0x300, 24)));
  }
}

TEST(ZipScan, FindsWhatIsBeforeACut) {
  const std::size_t end = 0x300 + 24;  // of the bytes of data/0; the descriptor follows
  EXPECT_EQ(scan(kTorchFile.substr(0, end + 16), "data/0").front().size, 24u);
  EXPECT_EQ(scan(kTorchFile.substr(0, end + 15), "data/0").front().size, std::nullopt);
  EXPECT_TRUE(scan(kTorchFile.substr(0, 0x2FF), "data/0").empty());
  EXPECT_TRUE(scan("").empty());
}

TEST(ZipScan, TakesSizesFromTheHeaderWhereTheyStandThere) {
  ZipParts zip;
  zip.entries = {plain_entry("x/data.pkl", "pickle")};
  const std::string file = local_bytes(zip.entries[0]);
  ASSERT_EQ(scan(file).size(), 1u);
  EXPECT_EQ(scan(file)[0].size, 6u);
  EXPECT_EQ(scan(file)[0].crc32, crc_of("pickle"));
  EXPECT_EQ(scan(file.substr(0, file.size() - 1))[0].size, std::nullopt);
}

TEST(ZipScan, TakesWideDescriptors) {
  ZipEntry entry = streamed_entry("x/data/0", "tensor!!");
  entry.descriptor = descriptor_of(entry, true);
  ASSERT_EQ(scan(local_bytes(entry)).size(), 1u);
  EXPECT_EQ(scan(local_bytes(entry))[0].size, 8u);
}

TEST(ZipScan, PassesOverWhatIsInsideOfARecord) {
  const std::string file = local_bytes(streamed_entry("x/data/0", kTorchFile)) +
                           local_bytes(streamed_entry("x/data/1", "tensor!!"));
  const auto claims = scan(file);
  ASSERT_EQ(claims.size(), 2u);
  EXPECT_EQ(claims[0].name, "data/0");
  EXPECT_EQ(claims[0].size, kTorchFile.size());
  EXPECT_EQ(claims[1].name, "data/1");
}

TEST(ZipScan, PassesOverWhatIsNoRecordOfTorchs) {
  for (const char* name : {"data", "/data", "x/"})
    EXPECT_TRUE(scan(local_bytes(streamed_entry(name, "tensor!!"))).empty()) << name;
  ZipEntry compressed = streamed_entry("x/data/0", "tensor!!");
  compressed.local.method = compressed.central.method = 8;
  EXPECT_TRUE(scan(local_bytes(compressed) + directory_bytes(compressed, 0)).empty());
  ZipEntry encrypted = streamed_entry("x/data/0", "tensor!!");
  encrypted.local.flags = 0x0809;
  EXPECT_TRUE(scan(local_bytes(encrypted)).empty());
}

// What a zip in the content of a record has, too, is no claim where it is not known how far that
// content goes.
TEST(ZipScan, ARecordWithoutAnEndMayBeAnythingFromThereOn) {
  ZipEntry open = streamed_entry("x/data/0", kTorchFile);
  open.descriptor = "";
  const std::string file = local_bytes(open) + local_bytes(streamed_entry("x/data/1", "tensor!!"));
  EXPECT_EQ(format::ZipScan(*source_of(file)).claims().front().name, "data/0");
  EXPECT_TRUE(scan(file, "data/1").empty());
  const auto claims = format::ZipScan(*source_of(file)).claims([](std::string_view name) {
    return name == "data/0" ? std::optional<std::uint64_t>(kTorchFile.size()) : std::nullopt;
  });
  ASSERT_EQ(claims.size(), 2u);
  EXPECT_EQ(claims[1].name, "data/1");
  EXPECT_EQ(claims[1].size, 8u);
  const ZipEntry second = streamed_entry("x/data/1", "tensor!!");
  const auto offset = static_cast<std::uint32_t>(local_bytes(open).size());
  EXPECT_EQ(scan(file + directory_bytes(second, offset), "data/1").size(), 3u);
  EXPECT_EQ(scan(file + directory_bytes(second, offset - 1), "data/1").size(), 1u);
}

// A header or descriptor that lies across the pieces in which the file is read.
TEST(ZipScan, FindsWhatLiesAcrossThePiecesInWhichItReads) {
  constexpr std::size_t kPiece = std::size_t{4} << 20;
  for (std::size_t before = kPiece - 72; before < kPiece + 8; before += 5) {
    const std::string file =
        std::string(before, 'x') + local_bytes(streamed_entry("x/data/0", "tensor!!"));
    const auto claims = scan(file);
    ASSERT_EQ(claims.size(), 1u) << before;
    EXPECT_EQ(claims[0].size, 8u) << before;
  }
}

// Structures that overlap, each with as much in it as fits: what they cost is near their size.
TEST(ZipScan, StructuresThatOverlapCostNoMoreThanTheirSize) {
  constexpr std::size_t kSize = std::size_t{1} << 20;
  const std::string header = local_bytes(streamed_entry("x/", "")).substr(0, 30);
  for (const auto size : {std::uint16_t{1024}, std::uint16_t{0xFFFF}}) {
    std::string local = header, entry = directory_bytes(streamed_entry("x/y", ""), 0).substr(0, 46);
    for (const std::size_t at : {26, 28}) format::put_at(&local[at], size);
    for (const std::size_t at : {28, 30}) format::put_at(&entry[at], size);
    for (const std::string& unit : {local, entry, std::string("PK\1\2"), std::string("PK\3\4")}) {
      std::string file;
      while (file.size() < kSize) file += unit + "a/";
      EXPECT_LE(scan(file).size(), file.size() / 30);
    }
  }
}

TEST(ZipScan, ALongNameIsCut) {
  const auto claims = scan(local_bytes(streamed_entry("x/" + std::string(300, 'n'), "tensor!!")));
  ASSERT_EQ(claims.size(), 1u);
  EXPECT_EQ(claims[0].name, std::string(64, 'n'));
  EXPECT_EQ(claims[0].size, 8u);
}

TEST(ZipScan, EntriesWhoseHeaderIsGoneFollowTheAlignment) {
  std::string file = kTorchFile;
  file.replace(file.find("PK\3\4", 0x280), 4, "xxxx");
  const auto claims = scan(file, "data/0");
  ASSERT_EQ(claims.size(), 1u);
  EXPECT_EQ(claims[0].data_offset, 0x300u);
}

}  // namespace
}  // namespace perdure::test
