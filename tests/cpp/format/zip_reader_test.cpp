// Which zip files are read, and which are refused because two readers could see different things in
// them.
#include "format/zip_reader.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "expect_error.hpp"
#include "format/memory_source.hpp"
#include "format/torch_file.hpp"
#include "format/zip_parts.hpp"

namespace perdure::test {
namespace {

using Falsify = std::function<void(ZipParts&)>;

std::vector<CheckpointFile::Record> read(const std::string& file) {
  return format::read_zip_directory(*source_of(file));
}

ZipParts plain_zip() {
  ZipParts zip;
  zip.entries = {plain_entry("x/data.pkl", "pickle"), plain_entry("x/data/0", "tensor!!"),
                 plain_entry("x/version", "3\n")};
  return zip;
}

ZipParts torch_zip() {
  ZipParts zip;
  zip.entries = {streamed_entry("x/data.pkl", "pickle"), streamed_entry("x/data/0", "tensor!!"),
                 streamed_entry("x/version", "3\n")};
  zip.with_zip64 = true;
  return zip;
}

TEST(ZipReader, ReadsWhatPythonsZipfileWrites) {
  const auto records = read(build(plain_zip()));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[1].name, "data/0");
  EXPECT_EQ(records[1].size, 8u);
  EXPECT_EQ(records[1].crc32, crc_of("tensor!!"));
  EXPECT_EQ(build(plain_zip()).substr(records[1].offset, 8), "tensor!!");
}

TEST(ZipReader, ReadsWhatTorchWrites) {
  EXPECT_EQ(read(build(torch_zip())).size(), 3u);
  EXPECT_EQ(read(kTorchFile).size(), 7u);
}

TEST(ZipReader, TakesEveryFormThatIsUnambiguous) {
  const std::pair<const char*, Falsify> forms[] = {
      {"a wide descriptor",
       [](ZipParts& zip) { zip.entries[1].descriptor = descriptor_of(zip.entries[1], true); }},
      {"sizes in the header and a descriptor",
       [](ZipParts& zip) {
         zip.entries[1].local.size = zip.entries[1].local.compressed = 8,
         zip.entries[1].local.crc32 = zip.entries[1].central.crc32;
       }},
      {"an empty record with a descriptor",
       [](ZipParts& zip) { zip.entries[1] = streamed_entry("x/data/0", ""); }},
      {"an empty record without one",
       [](ZipParts& zip) { zip.entries[1] = plain_entry("x/data/0", ""); }},
      {"extra fields of other kinds",
       [](ZipParts& zip) {
         zip.entries[1].local.extra = zip.entries[1].central.extra =
             std::string("\x55\x54\2\0ab", 6);
       }},
      {"comments of records", [](ZipParts& zip) { zip.entries[1].comment = "fine"; }},
      {"zip64 in local headers, as zipfile's force_zip64",
       [](ZipParts& zip) {
         zip.entries[1] = plain_entry("x/data/0", "tensor!!");
         zip.entries[1].local.size = zip.entries[1].local.compressed = 0xFFFFFFFF;
         zip.entries[1].local.extra = zip64_field({8, 8});
       }},
      {"zip64 in the directory for all three",
       [](ZipParts& zip) {
         auto& central = zip.entries[0].central;
         central.size = central.compressed = 0xFFFFFFFF;
         central.extra = zip64_field({6, 6, 0});
         zip.entries[0].offset = 0xFFFFFFFF;
       }},
  };
  for (const auto& [what, change] : forms) {
    SCOPED_TRACE(what);
    ZipParts zip = torch_zip();
    change(zip);
    EXPECT_EQ(read(build(zip)).size(), 3u);
  }
}

TEST(ZipReader, ADirectoryMayListTheRecordsInAnyOrder) {
  const std::string good = build(plain_zip());
  const std::size_t first = good.find("PK\1\2"), second = good.find("PK\1\2", first + 4),
                    third = good.find("PK\1\2", second + 4);
  const std::string swapped = good.substr(0, first) + good.substr(second, third - second) +
                              good.substr(first, second - first) + good.substr(third);
  ASSERT_EQ(swapped.size(), good.size());
  const auto records = read(swapped);
  EXPECT_EQ(records[0].name, "data.pkl");
  EXPECT_EQ(records[1].name, "data/0");
}

struct Hostile {
  const char* what;
  const char* message;
  Falsify change;
};

void expect_refused(const ZipParts& base, const Hostile& hostile) {
  SCOPED_TRACE(hostile.what);
  ZipParts zip = base;
  hostile.change(zip);
  const std::string file = build(zip);
  EXPECT_ERROR(corrupt, hostile.message, read(file));
  EXPECT_ERROR(corrupt, "memory.pt: ", read(file));
  EXPECT_ERROR(corrupt, "offset ", read(file));
}

void expect_refused_end(const ZipParts& base, const Hostile& hostile) {
  SCOPED_TRACE(hostile.what);
  const std::string file = build(base, hostile.change);
  EXPECT_ERROR(corrupt, hostile.message, read(file));
  EXPECT_ERROR(corrupt, "memory.pt: ", read(file));
  EXPECT_ERROR(corrupt, "offset ", read(file));
}

const Hostile kDisagreements[] = {
    {"name", "names in local header and directory differ",
     [](ZipParts& zip) { zip.entries[1].local.name = "x/data/1"; }},
    {"length of the name", "differ",
     [](ZipParts& zip) { zip.entries[1].local.name = "x/data/00"; }},
    {"method, local", "flags or method", [](ZipParts& zip) { zip.entries[1].local.method = 8; }},
    {"method, directory", "flags or method",
     [](ZipParts& zip) { zip.entries[1].central.method = 8; }},
    {"flags, local encrypted", "flags or method",
     [](ZipParts& zip) { zip.entries[1].local.flags |= 1; }},
    {"flags, local descriptor", "flags or method",
     [](ZipParts& zip) { zip.entries[1].local.flags ^= 8; }},
    {"flags, UTF-8", "flags or method", [](ZipParts& zip) { zip.entries[1].local.flags ^= 0x800; }},
    {"crc, local", "checksum or size", [](ZipParts& zip) { zip.entries[1].local.crc32 ^= 1; }},
    {"size, local", "checksum or size", [](ZipParts& zip) { zip.entries[1].local.size += 1; }},
    {"compressed size, local", "checksum or size",
     [](ZipParts& zip) { zip.entries[1].local.compressed += 1; }},
};

TEST(ZipReader, LocalHeaderAndDirectoryMustAgree) {
  for (const Hostile& hostile : kDisagreements) {
    expect_refused(plain_zip(), hostile);
    expect_refused(torch_zip(), hostile);
  }
  expect_refused(plain_zip(), {"size, directory", "two different sizes",
                               [](ZipParts& zip) { zip.entries[1].central.size -= 1; }});
  expect_refused(plain_zip(), {"both sizes, directory", "checksum or size", [](ZipParts& zip) {
                                 zip.entries[1].central.size -= 1,
                                     zip.entries[1].central.compressed -= 1;
                               }});
  expect_refused(plain_zip(), {"crc, directory", "checksum or size",
                               [](ZipParts& zip) { zip.entries[1].central.crc32 ^= 1; }});
}

TEST(ZipReader, DescriptorAndDirectoryMustAgree) {
  const Hostile cases[] = {
      {"crc in descriptor", "checksums in data descriptor",
       [](ZipParts& zip) { zip.entries[1].descriptor[5] ^= 1; }},
      {"size in descriptor", "sizes in data descriptor",
       [](ZipParts& zip) { zip.entries[1].descriptor[12] ^= 1; }},
      {"compressed size in descriptor", "sizes in data descriptor",
       [](ZipParts& zip) { zip.entries[1].descriptor[8] ^= 1; }},
      {"signature of descriptor", "damaged data descriptor",
       [](ZipParts& zip) { zip.entries[1].descriptor[0] = 'Q'; }},
      {"no descriptor", "odd size", [](ZipParts& zip) { zip.entries[1].descriptor.clear(); }},
      {"descriptor cut", "odd size", [](ZipParts& zip) { zip.entries[1].descriptor.pop_back(); }},
      {"descriptor and more", "odd size",
       [](ZipParts& zip) { zip.entries[1].descriptor += "more"; }},
      {"descriptor and what makes it a wide one", "data descriptor",
       [](ZipParts& zip) { zip.entries[1].descriptor += "hidden!!"; }},
      {"crc, directory", "checksums in data descriptor",
       [](ZipParts& zip) { zip.entries[1].central.crc32 ^= 1; }},
      {"size, directory", "",
       [](ZipParts& zip) {
         zip.entries[1].central.size -= 1, zip.entries[1].central.compressed -= 1;
       }},
  };
  for (const Hostile& hostile : cases) expect_refused(torch_zip(), hostile);
  expect_refused(plain_zip(), {"descriptor that the flags do not tell of", "bytes between records",
                               [](ZipParts& zip) {
                                 zip.entries[1].descriptor = descriptor_of(zip.entries[1]);
                               }});
}

TEST(ZipReader, EveryByteBelongsToOneRecord) {
  const Hostile cases[] = {
      {"before the first record", "bytes before the first record",
       [](ZipParts& zip) { zip.entries[0].before = "#!/bin/sh\n"; }},
      {"between records", "bytes between records",
       [](ZipParts& zip) { zip.entries[1].before = "hidden"; }},
      {"before the directory", "bytes between records",
       [](ZipParts& zip) { zip.before_directory = "hidden"; }},
      {"a record that is not listed", "bytes between records",
       [](ZipParts& zip) { zip.entries[1].listed = false; }},
      {"after the directory", "directory does not lie",
       [](ZipParts& zip) { zip.before_end = "hidden"; }},
      {"after the end", "no zip end record at the end", [](ZipParts& zip) { zip.after = "more"; }},
      {"a zero after the end", "no zip end record at the end",
       [](ZipParts& zip) { zip.after = std::string(1, '\0'); }},
      {"a comment", "no zip end record at the end", [](ZipParts& zip) { zip.comment = "hello"; }},
      {"another archive after the end", "directory does not lie",
       [](ZipParts& zip) { zip.after = build(plain_zip()); }},
      {"another archive in the comment", "directory does not lie",
       [](ZipParts& zip) { zip.comment = build(plain_zip()); }},
  };
  for (const Hostile& hostile : cases) expect_refused(plain_zip(), hostile);
  std::string file = build(plain_zip());
  file[file.size() - 2] = 5;  // the end record claims a comment
  EXPECT_ERROR(corrupt, "a zip comment", read(file));
}

TEST(ZipReader, NoTwoRecordsShareBytesOrNames) {
  const Hostile cases[] = {
      {"the same name twice", "two records of the same name",
       [](ZipParts& zip) { zip.entries.push_back(plain_entry("x/data.pkl", "other")); }},
      {"the same record twice in the directory", "",
       [](ZipParts& zip) {
         zip.entries.push_back(zip.entries[0]), zip.entries.back().stored = false,
                                                zip.entries.back().offset = 0;
       }},
      {"two names for one record", "overlap",
       [](ZipParts& zip) {
         zip.entries.push_back(zip.entries[0]), zip.entries.back().stored = false,
                                                zip.entries.back().offset = 0,
                                                zip.entries.back().central.name = "x/copy.pkl";
       }},
      {"a record within another one", "",
       [](ZipParts& zip) {
         zip.entries.insert(zip.entries.begin() + 1,
                            plain_entry("x/in", local_bytes(zip.entries[0]) + "!")),
             zip.entries[2].offset =
                 static_cast<std::uint32_t>(local_bytes(zip.entries[0]).size() + 34);
       }},
      {"a size that reaches into the next record", "",
       [](ZipParts& zip) {
         for (auto* header : {&zip.entries[0].local, &zip.entries[0].central})
           header->size = header->compressed = 50;
       }},
      {"a size beyond the file", "does not fit in the file",
       [](ZipParts& zip) {
         for (auto* header : {&zip.entries[2].local, &zip.entries[2].central})
           header->size = header->compressed = 0x7FFFFFFF;
       }},
      {"an offset beyond the file", "does not fit in the file",
       [](ZipParts& zip) { zip.entries[2].offset = 0x7FFFFFFF; }},
      {"an offset in the middle of a record", "", [](ZipParts& zip) { zip.entries[2].offset = 7; }},
  };
  for (const Hostile& hostile : cases) expect_refused(plain_zip(), hostile);
}

TEST(ZipReader, NamesStayInsideOfOneFolder) {
  const std::pair<const char*, std::string> names[] = {
      {"..", "x/../y"},
      {".. at the end", "x/.."},
      {".", "x/./y"},
      {"absolute", "/etc/x"},
      {"a second top folder", "y/data/0"},
      {"no folder", "data"},
      {"empty part", "x//y"},
      {"a folder", "x/y/"},
      {"NUL", std::string("x/a\0b", 5)},
      {"backslash", "x\\y"},
      {"backslash below", "x/a\\..\\b"},
      {"the folder itself", "x/"},
      {"nothing", ""},
      {"prefix of the folder", "xy/data"},
      {"escape", "x/\x1b[2J"},
      {"no UTF-8", "x/\xff"},
      {"a surrogate", "x/\xed\xa0\x80"},
      {"newline", "x/a\nb"},
  };
  for (const auto& [what, name] : names) {
    expect_refused(plain_zip(), {what, "", [&](ZipParts& zip) {
                                   zip.entries[1] = plain_entry(name, "tensor!!");
                                 }});
    expect_refused(torch_zip(), {what, "", [&](ZipParts& zip) {
                                   zip.entries[1] = streamed_entry(name, "tensor!!");
                                 }});
  }
  for (const char* top : {"", ".", "..", "/", "a\\b"})
    expect_refused(plain_zip(), {top, "", [&](ZipParts& zip) {
                                   for (ZipEntry& entry : zip.entries)
                                     entry.local.name = entry.central.name =
                                         top + entry.local.name.substr(1);
                                 }});
}

TEST(ZipReader, FlagsThatNobodyNeedsAreRefused) {
  for (int bit = 0; bit < 16; ++bit) {
    if (bit == 3 || bit == 11) continue;
    const auto flag = static_cast<std::uint16_t>(1u << bit);
    expect_refused(torch_zip(), {"flag", "flags that PyTorch never sets", [&](ZipParts& zip) {
                                   zip.entries[1].local.flags |= flag,
                                       zip.entries[1].central.flags |= flag;
                                 }});
  }
}

TEST(ZipReader, CompressedRecordsAreUnsupportedAndNotDamaged) {
  ZipParts zip = plain_zip();
  zip.entries[1].local.method = zip.entries[1].central.method = 8;
  zip.entries[1].local.size = zip.entries[1].central.size = 1'000'000'000;
  const std::string file = build(zip);
  EXPECT_ERROR(unsupported, "memory.pt: record 'data/0' is compressed", read(file));
  EXPECT_ERROR(unsupported, "without compression", read(file));
}

TEST(ZipReader, Zip64FieldsStandIfAndOnlyIfTheyAreCalledFor) {
  const auto both = [](ZipEntry& entry, std::uint32_t value) {
    entry.central.size = entry.central.compressed = value;
  };
  const Hostile cases[] = {
      {"uncalled for", "more in it than is called for",
       [](ZipParts& zip) { zip.entries[1].central.extra = zip64_field({8, 8}); }},
      {"uncalled for and empty", "uncalled for",
       [](ZipParts& zip) { zip.entries[1].central.extra = zip64_field({}); }},
      {"missing", "missing or uncalled for",
       [&](ZipParts& zip) { both(zip.entries[1], 0xFFFFFFFF); }},
      {"one number short", "zip64 field ends",
       [&](ZipParts& zip) {
         both(zip.entries[1], 0xFFFFFFFF), zip.entries[1].central.extra = zip64_field({8});
       }},
      {"one number more", "more in it than is called for",
       [&](ZipParts& zip) {
         both(zip.entries[1], 0xFFFFFFFF), zip.entries[1].central.extra = zip64_field({8, 8, 8});
       }},
      {"twice", "two zip64 fields",
       [&](ZipParts& zip) {
         both(zip.entries[1], 0xFFFFFFFF),
             zip.entries[1].central.extra = zip64_field({8, 8}) + zip64_field({8, 8});
       }},
      {"contradicts the local header", "",
       [&](ZipParts& zip) {
         both(zip.entries[1], 0xFFFFFFFF), zip.entries[1].central.extra = zip64_field({7, 7});
       }},
      {"two sizes", "two different sizes",
       [&](ZipParts& zip) {
         both(zip.entries[1], 0xFFFFFFFF), zip.entries[1].central.extra = zip64_field({8, 7});
       }},
      {"huge", "does not fit",
       [&](ZipParts& zip) {
         both(zip.entries[1], 0xFFFFFFFF),
             zip.entries[1].central.extra = zip64_field({~0ull, ~0ull});
       }},
      {"huge offset", "does not fit",
       [&](ZipParts& zip) {
         zip.entries[1].offset = 0xFFFFFFFF,
         zip.entries[1].central.extra = zip64_field({~0ull - 3});
       }},
      {"an extra field that is cut off", "extra field ends",
       [](ZipParts& zip) { zip.entries[1].central.extra = std::string("\x01\x00\x10", 3); }},
      {"an extra field that claims more", "extra field ends",
       [](ZipParts& zip) { zip.entries[1].central.extra = std::string("\x55\x54\xff\xff", 4); }},
  };
  for (const Hostile& hostile : cases) {
    expect_refused(plain_zip(), hostile);
    expect_refused(torch_zip(), hostile);
  }
  const auto in_local = [](std::string extra) {
    return [=](ZipParts& zip) {
      zip.entries[1].local.size = zip.entries[1].local.compressed = 0xFFFFFFFF,
      zip.entries[1].local.extra = extra;
    };
  };
  expect_refused(plain_zip(), {"local, missing", "missing", in_local("")});
  expect_refused(plain_zip(),
                 {"local, other sizes", "sizes in local header", in_local(zip64_field({7, 7}))});
  expect_refused(plain_zip(), {"local, one number", "ends", in_local(zip64_field({8}))});
}

TEST(ZipReader, EndRecordsMustTellTheTruth) {
  const Hostile cases[] = {
      {"count too small", "number of records",
       [](ZipParts& zip) {
         zip.narrow.count = zip.narrow.count_here = zip.wide.count = zip.wide.count_here = 2;
       }},
      {"count too large", "number of records",
       [](ZipParts& zip) {
         zip.narrow.count = zip.narrow.count_here = zip.wide.count = zip.wide.count_here = 4;
       }},
      {"count of 0", "number of records",
       [](ZipParts& zip) {
         zip.narrow.count = zip.narrow.count_here = zip.wide.count = zip.wide.count_here = 0;
       }},
      {"two counts", "contradicts itself", [](ZipParts& zip) { zip.narrow.count_here = 2; }},
      {"size too small", "directory does not lie",
       [](ZipParts& zip) { zip.narrow.size -= 1, zip.wide.size -= 1; }},
      {"size of 0", "directory does not lie",
       [](ZipParts& zip) { zip.narrow.size = zip.wide.size = 0; }},
      {"offset elsewhere", "directory does not lie",
       [](ZipParts& zip) { zip.narrow.offset -= 4, zip.wide.offset -= 4; }},
      {"offset and size elsewhere", "zip directory",
       [](ZipParts& zip) {
         zip.narrow.offset -= 4, zip.narrow.size += 4, zip.wide.offset -= 4, zip.wide.size += 4;
       }},
      {"offset beyond the file", "directory does not lie",
       [](ZipParts& zip) { zip.narrow.offset = zip.wide.offset = 0x7FFFFFFF; }},
      {"volume", "several volumes", [](ZipParts& zip) { zip.narrow.disk = 1; }},
  };
  for (const Hostile& hostile : cases) {
    expect_refused_end(plain_zip(), hostile);
    expect_refused_end(torch_zip(), hostile);
  }
  expect_refused(plain_zip(), {"volume of a record", "several volumes",
                               [](ZipParts& zip) { zip.entries[1].disk = 1; }});
}

TEST(ZipReader, Zip64EndRecordsMustTellTheTruth) {
  const Hostile cases[] = {
      {"two counts", "contradicts itself", [](ZipParts& zip) { zip.wide.count_here = 2; }},
      {"another count", "contradict each other",
       [](ZipParts& zip) { zip.wide.count = zip.wide.count_here = 2; }},
      {"another size", "contradict each other", [](ZipParts& zip) { zip.wide.size -= 1; }},
      {"another offset", "contradict each other", [](ZipParts& zip) { zip.wide.offset -= 1; }},
      {"a huge count", "number of records",
       [](ZipParts& zip) {
         zip.narrow.count = zip.narrow.count_here = 0xFFFF,
         zip.wide.count = zip.wide.count_here = ~0ull;
       }},
      {"a huge size", "directory does not lie",
       [](ZipParts& zip) { zip.narrow.size = 0xFFFFFFFF, zip.wide.size = ~0ull; }},
      {"a huge offset", "directory does not lie",
       [](ZipParts& zip) { zip.narrow.offset = 0xFFFFFFFF, zip.wide.offset = ~0ull; }},
      {"size and offset that wrap around", "directory does not lie",
       [](ZipParts& zip) {
         zip.narrow.offset = 0xFFFFFFFF, zip.wide.offset = ~0ull - 10, zip.narrow.size = 0xFFFFFFFF,
         zip.wide.size = zip.locator_offset + 11;
       }},
      {"volume", "several volumes", [](ZipParts& zip) { zip.wide.disk = 1; }},
      {"volume of the locator", "several volumes", [](ZipParts& zip) { zip.locator_disk = 1; }},
      {"two volumes", "several volumes", [](ZipParts& zip) { zip.locator_disks = 2; }},
      {"locator elsewhere", "points somewhere else",
       [](ZipParts& zip) { zip.locator_offset -= 4; }},
      {"locator at the end of all", "points somewhere else",
       [](ZipParts& zip) { zip.locator_offset = ~0ull; }},
      {"no record", "no zip64 end record", [](ZipParts& zip) { zip.wide_signature = 0; }},
      {"an odd size", "odd size", [](ZipParts& zip) { zip.wide_size = 45; }},
  };
  for (const Hostile& hostile : cases) expect_refused_end(torch_zip(), hostile);
  const Hostile missing[] = {
      {"count", "zip64 end record is missing",
       [](ZipParts& zip) { zip.narrow.count = zip.narrow.count_here = 0xFFFF; }},
      {"size", "zip64 end record is missing", [](ZipParts& zip) { zip.narrow.size = 0xFFFFFFFF; }},
      {"offset", "zip64 end record is missing",
       [](ZipParts& zip) { zip.narrow.offset = 0xFFFFFFFF; }},
  };
  for (const Hostile& hostile : missing) expect_refused_end(plain_zip(), hostile);
}

TEST(ZipReader, CutFilesAreRefusedAtEveryLength) {
  for (const std::string& file : {build(plain_zip()), build(torch_zip()), kTorchFile})
    for (std::size_t size = 0; size < file.size(); ++size)
      EXPECT_ERROR(corrupt, "memory.pt: ", read(file.substr(0, size)));
}

TEST(ZipReader, ClaimsAreComparedWithTheFileBeforeMemoryIsTaken) {
  // 100 bytes that claim four thousand million records and a directory of exabytes.
  std::string file = "PK\3\4" + std::string(60, '\0');
  ZipParts zip;
  zip.with_zip64 = true;
  zip.wide = {.count = 0xFFFFFFFF, .count_here = 0xFFFFFFFF, .size = 0, .offset = 0};
  zip.narrow = {.count = 0xFFFF, .count_here = 0xFFFF, .size = 0xFFFFFFFF, .offset = 0};
  zip.wide.size = file.size();
  zip.locator_offset = file.size();
  file += zip64_end_bytes(zip) + end_bytes(zip);
  EXPECT_ERROR(corrupt, "number of records", read(file));
}

}  // namespace
}  // namespace perdure::test
