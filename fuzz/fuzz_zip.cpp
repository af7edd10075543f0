// Arbitrary bytes as a whole file: only perdure::Error may come out, and whatever is loaded
// survives a save.
//
// Checksums and the agreement of the zip headers stop a fuzzer that knows nothing of them. So most
// mutations take the file apart, change the content or the name of one record, and put it together
// again as perdure would.
#include <algorithm>
#include <cstdint>
#include <random>

#include "engine/salvage.hpp"
#include "format/archive_layout.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/zip_reader.hpp"
#include "saved_again.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

using namespace perdure;

struct Opened {
  std::optional<CheckpointFile> file;
  bool damaged = false;
};

Opened opened(const std::string& bytes, bool allow_opaque) {
  try {
    auto file = CheckpointFile::open(test::source_of(bytes), allow_opaque);
    file.read_all(file.value());
    return {.file = std::move(file), .damaged = false};
  } catch (const Error& error) {
    return {.file = std::nullopt, .damaged = error.code() == ErrorCode::corrupt};
  }
}

VerifyReport::State verified(const std::string& bytes) {
  try {
    return verify(test::source_of(bytes)).state;
  } catch (const Error& error) {
    fuzz::require(error.code() != ErrorCode::corrupt,
                  std::string("verify throws for damage: ") + error.what());
    return VerifyReport::State::damaged;
  }
}

// What is proven is all that there is in a file without damage, and can be saved in any case.
void check_salvage(const std::string& bytes, const CheckpointFile* whole) {
  try {
    const engine::Salvage found = engine::salvage(test::source_of(bytes), nullptr);
    fuzz::check_saved_again(found.state);
    if (whole == nullptr) return;
    fuzz::require(found.report.lost.empty(), "repair loses something of a file without damage");
    const std::string difference = test::Comparison::difference(whole->value(), found.state);
    fuzz::require(difference.empty(), "repair saves another value: " + difference);
  } catch (const Error& error) {
    fuzz::require(whole == nullptr,
                  std::string("repair cannot read a file without damage: ") + error.what());
  }
}

// ---- mutation

struct Part {
  std::string name;
  std::string content;
};

std::vector<Part> take_apart(const std::string& bytes) {
  std::vector<Part> parts;
  for (const auto& record : format::read_zip_directory(*test::source_of(bytes)))
    parts.push_back({record.name, bytes.substr(record.offset, record.size)});
  return parts;
}

void overwrite(std::string& bytes, std::size_t at, std::uint64_t x, std::size_t size) {
  std::string encoded;
  format::put<std::uint64_t>(encoded, x);
  if (at + size <= bytes.size()) bytes.replace(at, size, encoded, 0, size);
}

// Makes .perdure/index agree with the directory again, as far as storages of one block go.
void repair_index(std::string& index, const std::vector<format::ZipRecord>& records) {
  constexpr std::size_t kHeader = 32, kEntry = 20;
  if (index.size() < kHeader) return;
  const auto storages =
      std::min<std::uint64_t>(format::get<std::uint64_t>(&index[16]), records.size());
  std::size_t block_at = kHeader + storages * kEntry;
  for (std::size_t i = 0; i < storages; ++i) {
    const std::string name = "archive/data/" + std::to_string(i);
    const auto record = std::ranges::find(records, name, &format::ZipRecord::name);
    if (record == records.end()) continue;
    const std::size_t at = kHeader + i * kEntry;
    overwrite(index, at, record->data_offset, 8);
    overwrite(index, at + 8, record->size, 8);
    overwrite(index, at + 16, record->crc32, 4);
    if (record->size == 0) continue;
    overwrite(index, block_at, record->crc32, 4);
    block_at += 4;
  }
}

std::string put_together(std::vector<Part> parts) {
  std::vector<format::ZipRecord> records;
  for (const Part& part : parts) {
    format::append_record(records, "archive/" + part.name, part.content.size());
    records.back().crc32 = format::crc32(format::as_bytes(part.content));
  }
  std::string out;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].name == ".perdure/index") {
      repair_index(parts[i].content, records);
      records[i].crc32 = format::crc32(format::as_bytes(parts[i].content));
    }
    out +=
        format::local_header(records[i]) + parts[i].content + format::data_descriptor(records[i]);
  }
  return out + format::central_directory(records);
}

void mutate_text(std::string& text, std::size_t room) {
  const std::size_t size = text.size();
  text.resize(size + room);
  text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text.data()), size, text.size()));
}

void mutate_parts(std::vector<Part>& parts, std::mt19937& random) {
  const auto pick = [&]() -> std::size_t { return random() % parts.size(); };
  Part& part = parts[pick()];
  switch (random() % 16) {
    case 0:
      return mutate_text(part.name, 8);
    case 1:
      return std::swap(part, parts[pick()]);
    case 2:
      part.content = parts[pick()].content;
      return;
    case 3:
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(pick()));
      return;
    case 4:
      parts.push_back({part.name + "0", part.content});
      return;
    default:
      break;
  }
  // Most often the structure: it is where meaning comes from.
  const auto structure = std::ranges::find(parts, "data.pkl", &Part::name);
  Part& target = structure != parts.end() && random() % 2 == 0 ? *structure : part;
  mutate_text(target.content, 64);
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  std::mt19937 random(seed);
  if (random() % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
  try {
    auto parts = take_apart(std::string(reinterpret_cast<const char*>(data), size));
    mutate_parts(parts, random);
    const std::string out = put_together(std::move(parts));
    if (out.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
    std::ranges::copy(out, reinterpret_cast<char*>(data));
    return out.size();
  } catch (const Error&) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const auto state = verified(bytes);
  const Opened shown = opened(bytes, true);
  const Opened plain = opened(bytes, false);
  perdure::fuzz::require(shown.file || !plain.file, "plain data that cannot be shown");
  perdure::fuzz::require(!(shown.damaged || plain.damaged) || state == VerifyReport::State::damaged,
                         "verify does not see what load calls damage");
  if (plain.file) perdure::fuzz::check_saved_again(plain.file->value());
  // Of TorchScript, repair knows nothing.
  const bool whole = plain.file && state == VerifyReport::State::good &&
                     plain.file->format().find("TorchScript") == std::string::npos;
  check_salvage(bytes, whole ? &*plain.file : nullptr);
  return 0;
}
