// Arbitrary bytes as a zip file, without mending its headers: where the reader, which comes from
// the back, accepts it, one that knows nothing but local headers and comes from the front finds the
// same records.
#include "format/coding.hpp"
#include "format/memory_source.hpp"
#include "format/zip_reader.hpp"
#include "require.hpp"

namespace {

using namespace perdure;
using Record = CheckpointFile::Record;

// Takes one record off the front. Of a streamed one nobody but the directory knows the size: it is
// looked for, as such readers do, by the descriptor that fits.
class FrontReader {
 public:
  FrontReader(std::string_view bytes, const std::vector<Record>& expected)
      : bytes_(bytes), expected_(expected) {}

  void run() {
    for (const Record& record : expected_) read(record);
    fuzz::require(signature() == 0x02014B50,
                  "something lies between the records and the directory");
  }

 private:
  template <class T>
  T at(std::size_t offset) const {
    fuzz::require(offset + sizeof(T) <= bytes_.size(), "a header outside of the file");
    return format::get<T>(bytes_.data() + offset);
  }
  std::uint32_t signature() const { return at<std::uint32_t>(at_); }

  void read(const Record& expected) {
    fuzz::require(signature() == 0x04034B50, "no local header where one must be");
    const bool streamed = (at<std::uint16_t>(at_ + 6) & 8) != 0;
    fuzz::require(at<std::uint16_t>(at_ + 8) == 0, "a compressed record");
    const auto name_size = at<std::uint16_t>(at_ + 26), extra_size = at<std::uint16_t>(at_ + 28);
    const std::string_view name = bytes_.substr(at_ + 30, name_size);
    const std::size_t data = at_ + 30 + name_size + extra_size;
    fuzz::require(name.substr(name.find('/') + 1) == expected.name, "another name in front");
    fuzz::require(data == expected.offset && data + expected.size <= bytes_.size(),
                  "another place in front");
    at_ = data + expected.size;
    if (streamed)
      skip_descriptor(expected);
    else
      fuzz::require(at<std::uint32_t>(data - extra_size - name_size - 16) == expected.crc32,
                    "another checksum in front");
  }
  void skip_descriptor(const Record& expected) {
    fuzz::require(signature() == 0x08074B50 && at<std::uint32_t>(at_ + 4) == expected.crc32,
                  "no descriptor, or another one, behind the data");
    const bool wide =
        at<std::uint32_t>(at_ + 16) != 0x04034B50 && at<std::uint32_t>(at_ + 16) != 0x02014B50;
    fuzz::require((wide ? at<std::uint64_t>(at_ + 8) : at<std::uint32_t>(at_ + 8)) == expected.size,
                  "another size behind the data");
    at_ += wide ? 24 : 16;
  }

  std::string_view bytes_;
  const std::vector<Record>& expected_;
  std::size_t at_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes = perdure::fuzz::text_of(data, size);
  try {
    const auto records = format::read_zip_directory(*test::source_of(std::string(bytes)));
    FrontReader(bytes, records).run();
  } catch (const Error&) {
    // Refused.
  }
  return 0;
}
