// TorchScript archives: the attributes of their modules, read and never run.
#include <gtest/gtest.h>
#include <zlib.h>

#include "expect_error.hpp"
#include "format/memory_source.hpp"
#include "format/pickle_text.hpp"
#include "format/zip_parts.hpp"

namespace perdure::test {
namespace {

using namespace text;

std::string instance(std::string_view module, std::string_view name, const std::string& state) {
  return global(module, name) + ")\x81" + state + "b";
}

std::string deflated(const std::string& data) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(data.size() + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// As torch writes the code: compressed.
ZipEntry packed_entry(std::string name, const std::string& data) {
  ZipEntry entry = plain_entry(std::move(name), deflated(data));
  for (ZipHeader* header : {&entry.local, &entry.central}) {
    header->method = 8;
    header->crc32 = crc_of(data);
    header->size = static_cast<std::uint32_t>(data.size());
  }
  return entry;
}

const std::string kWeight =
    tensor(storage("FloatStorage", "0", 2), 0, {2}, {1});  // of either folder
const std::string kCode(5000, 'c');

ZipParts script() {
  const std::string linear =
      instance("__torch__.torch.nn", "Linear", dict({string("weight"), kWeight}));
  const std::string root =
      instance("__torch__", "Net",
               dict({string("fc"), linear, string("training"), kTrue, string("sizes"),
                     call("torch.jit._pickle", "build_intlist", {list({integer(1), integer(2)})}),
                     string("table"),
                     call("torch.jit._pickle", "restore_type_tag",
                          {dict({string("a"), kWeight}), string("Dict[str, Tensor]")}),
                     string("color"), global("__torch__", "Color") + tuple({integer(7)}) + "R",
                     string("packed"),
                     instance("__torch__.torch.classes", "Packed", tuple({string("1")}))}));
  ZipParts zip;
  zip.entries = {streamed_entry("n/data/0", "weights!"),
                 streamed_entry("n/data.pkl", pickle(root)),
                 packed_entry("n/code/__torch__.py", kCode),
                 streamed_entry("n/constants/0", "constant"),
                 streamed_entry("n/constants.pkl", pickle(tuple({kWeight}))),
                 streamed_entry("n/version", "3\n")};
  return zip;
}

std::string bytes_in(const Value& value) {
  const TensorStorage& storage = *value.as_tensor().storage;
  return {reinterpret_cast<const char*>(storage.data), storage.size};
}

TEST(TorchScript, ModulesAreDictsOfTheirAttributes) {
  const std::string file = build(script());
  EXPECT_EQ(CheckpointFile::open(source_of(file)).format(), "TorchScript");
  const Value state = load_bytes(file);
  EXPECT_EQ((*state.as_dict().attributes()).at("_class").as_string(), "__torch__.Net");
  EXPECT_EQ(state["fc"].as_dict().attributes()->at("_class").as_string(),
            "__torch__.torch.nn.Linear");
  EXPECT_EQ(bytes_in(state["fc"]["weight"]), "weights!");
  EXPECT_EQ(state["table"]["a"].as_tensor().storage, state["fc"]["weight"].as_tensor().storage);
  EXPECT_TRUE(state["training"].as_bool());
  EXPECT_EQ(state["sizes"][1].as_int(), 2);
  EXPECT_EQ(state["color"]["(value)"].as_int(), 7);
  EXPECT_EQ(state["packed"]["(state)"][0].as_string(), "1");
  EXPECT_EQ(bytes_in(state["(constants)"][0]), "constant");
}

TEST(TorchScript, IsVerifiedWithItsCode) {
  ZipParts zip = script();
  const VerifyReport good = verify(source_of(build(zip)));
  EXPECT_EQ(good.state, VerifyReport::State::good);
  EXPECT_EQ(good.tensors, 3u);
  const auto finding = [](const ZipParts& parts) {
    const VerifyReport report = verify(source_of(build(parts)));
    EXPECT_EQ(report.state, VerifyReport::State::damaged);
    return report.findings.empty() ? Finding() : report.findings[0];
  };
  zip.entries[2].data[5] ^= 1;
  EXPECT_EQ(finding(zip).record, "code/__torch__.py");
  zip = script();
  zip.entries[0].data[5] ^= 1;
  EXPECT_NE(finding(zip).tensor.find("state['fc']['weight']"), std::string::npos);
  zip = script();
  zip.entries[3].data[5] ^= 1;
  EXPECT_EQ(finding(zip).tensor, "state['(constants)'][0]");
}

TEST(TorchScript, CodeThatUnpacksToSomethingElse) {
  const auto verified = [](std::uint32_t size, const std::string& more = "") {
    ZipParts zip = script();
    ZipEntry& code = zip.entries[2];
    code.local.size = code.central.size = size;
    code.data += more;
    code.local.compressed = code.central.compressed = static_cast<std::uint32_t>(code.data.size());
    return verify(source_of(build(zip)));
  };
  using State = VerifyReport::State;
  EXPECT_EQ(verified(5000).state, State::good);
  EXPECT_EQ(verified(4999).state, State::damaged);
  EXPECT_EQ(verified(5001).state, State::damaged);
  EXPECT_EQ(verified(0).state, State::damaged);
  EXPECT_EQ(verified(5000, "x").state, State::damaged);
  EXPECT_ERROR(unsupported, "more than 1 GiB", verified(0x40000001));
}

TEST(TorchScript, WhatIsCompressedOtherwiseIsRefused) {
  ZipParts zip = script();
  zip.entries[2].local.method = zip.entries[2].central.method = 12;
  EXPECT_ERROR(unsupported, "compressed", CheckpointFile::open(source_of(build(zip))));
  zip = script();
  zip.entries.erase(zip.entries.begin() + 3, zip.entries.begin() + 5);
  EXPECT_ERROR(unsupported, "record 'code/__torch__.py' is compressed",
               CheckpointFile::open(source_of(build(zip))));
}

TEST(TorchScript, CompressedTensorsAreNotMissing) {
  ZipParts zip = script();
  zip.entries[0] = packed_entry("n/data/0", "weights!");
  EXPECT_ERROR(unsupported, "record 'data/0' is compressed", load_bytes(build(zip)));
}

}  // namespace
}  // namespace perdure::test
