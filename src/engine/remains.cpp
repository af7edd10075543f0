#include "engine/remains.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdint>

#include "format/contents.hpp"
#include "format/crc32.hpp"
#include "format/pickle_reader.hpp"
#include "format/zip_records.hpp"

namespace perdure::engine {
namespace {

using format::RecordClaim;
using Record = CheckpointFile::Record;

constexpr std::string_view kFolder = "data/";
// A whole file has one, two copies of it behind each other have four.
constexpr std::size_t kMaxEvidence = 16;

bool same_place(const Record& a, const Record& b) {
  return a.offset == b.offset && a.size == b.size;
}

// A file that does not begin as any is taken for a zip whose beginning is lost.
void refuse_other_formats(const Source& source) {
  if (source.size() == 0)
    throw Error(ErrorCode::corrupt, fmt::format("{}: the file is empty", source.name()));
  const std::string what = format::describe_format(source);
  if (format::format_of(source) == format::Format::unknown)
    throw Error(ErrorCode::corrupt,
                fmt::format("{}: does not begin as a PyTorch file (at offset 0); it was "
                            "overwritten, or is something else{}",
                            source.name(), what.empty() ? "" : ": " + what));
  if (format::format_of(source) != format::Format::torch_zip)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: {}; only PyTorch's zip format has checksums that prove what of a "
                            "file is whole",
                            source.name(), what));
}

void refuse_torch_script(const format::ZipRecords& zip) {
  if (zip.is_torch_script())
    throw Error(
        ErrorCode::unsupported,
        fmt::format("{}: a TorchScript archive, which cannot be repaired", zip.source().name()));
}

// A record of a hostile file may have a name of any length.
std::string shown(std::string_view name) {
  constexpr std::size_t kMost = 100;
  return name.size() <= kMost ? std::string(name) : fmt::format("{}...", name.substr(0, kMost));
}

// Every writer numbers them; in another name there is damage.
bool is_storage(std::string_view name) {
  if (!name.starts_with(kFolder)) return false;
  const std::string_view key = name.substr(kFolder.size());
  return !key.empty() && std::ranges::all_of(key, [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

Remains::Remains(std::shared_ptr<const Source> source) : source_(std::move(source)) {
  try {
    refuse_other_formats(*source_);
    const format::ZipRecords records(*source_);
    refuse_torch_script(records);
    std::vector<RecordClaim> claims;
    for (const Record& record : records.records())
      claims.push_back({record.name, record.offset, record.size, record.crc32});
    take_claims(std::move(claims));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::corrupt) throw;
    scan_.emplace(*source_);
    take_claims(scan_->claims());
    if (claims_.empty()) throw;
    refusal_ = error.what();
  }
  first_ = std::ranges::min_element(claims_, {}, &RecordClaim::data_offset)->name;
  refuse_unchecked();
  read_index();
}

void Remains::take_claims(std::vector<RecordClaim> claims) {
  claims_ = std::move(claims);
  std::ranges::stable_sort(claims_, {}, &RecordClaim::name);
}

void Remains::learn_sizes(const std::map<std::string, std::uint64_t>& sizes) {
  if (!scan_) return;
  take_claims(scan_->claims([&](std::string_view name) -> std::optional<std::uint64_t> {
    if (!name.starts_with(kFolder)) return std::nullopt;
    const auto at = sizes.find(std::string(name.substr(kFolder.size())));
    return at == sizes.end() ? std::nullopt : std::optional(at->second);
  }));
}

void Remains::refuse_unchecked() const {
  const auto sized = [](const RecordClaim& claim) { return claim.size.value_or(0) > 0; };
  const auto summed = [](const RecordClaim& claim) { return claim.crc32 != 0; };
  if (std::ranges::any_of(claims_, sized) && std::ranges::none_of(claims_, summed))
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: written without checksums (compute_crc32=False), so nothing in it "
                            "can be proven to be whole",
                            source_->name()));
}

// Only perdure puts the tensors first.
bool Remains::had(std::string_view name) const {
  const auto ours = [](const RecordClaim& claim) { return claim.name.starts_with(".perdure/"); };
  const bool lists_all = refusal_.empty();
  return !claims_of(name).empty() ||
         (!lists_all && (first_.starts_with(kFolder) || std::ranges::any_of(claims_, ours)));
}

// A newer version is told as such.
void Remains::read_index() {
  const auto text = read_text(".perdure/index");
  if (!text) return;
  try {
    index_ = format::read_index(*text);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::corrupt) throw;
  }
}

Remains::Claims Remains::claims_of(std::string_view name) const {
  const auto view = [](const RecordClaim& claim) { return std::string_view(claim.name); };
  const auto found = std::ranges::equal_range(claims_, name, {}, view);
  return {found.begin(), found.end()};
}

const format::StorageChecksums* Remains::indexed(std::string_view name) const {
  if (!index_ || !name.starts_with(kFolder)) return nullptr;
  std::size_t number = 0;
  std::from_chars(name.data() + kFolder.size(), name.data() + name.size(), number);
  // Other spellings of the number, such as data/00, are other records.
  if (number >= index_->storages.size() || name != fmt::format("{}{}", kFolder, number))
    return nullptr;
  return &index_->storages[number];
}

// Where the most witnesses stand first.
std::vector<Remains::Evidence> Remains::evidence(std::string_view name,
                                                 std::optional<std::uint64_t> size) const {
  std::vector<Evidence> found;
  const auto add = [&](Record record) {
    const bool is_wanted = size ? record.size == *size : record.size > 0;  // a text is never empty
    const bool fits = is_wanted && record.offset <= source_->size() &&
                      record.size <= source_->size() - record.offset;
    const auto same = std::ranges::find_if(found, [&](const Evidence& other) {
      return same_place(other.record, record) && other.record.crc32 == record.crc32;
    });
    if (same != found.end())
      ++same->witnesses;
    else if (fits && found.size() < kMaxEvidence)
      found.push_back({std::move(record)});
  };
  for (const RecordClaim& claim : claims_of(name))
    if (claim.size) add({claim.name, claim.data_offset, *claim.size, claim.crc32});
  if (const format::StorageChecksums* sums = indexed(name))
    add({std::string(name), sums->data_offset, sums->size, sums->crc32});
  std::ranges::stable_sort(found, std::greater(), &Evidence::witnesses);
  return found;
}

Remains::Found Remains::find(std::string_view name, std::optional<std::uint64_t> size) const {
  std::vector<Evidence> all = evidence(name, size);
  if (all.empty()) return {std::nullopt, why_absent(name, size)};
  const int most = all.front().witnesses;
  std::erase_if(all, [&](const Evidence& one) { return one.witnesses < most; });
  return all.size() == 1 ? Found{std::move(all.front().record), {}} : decide(all);
}

// One bit that differs has flipped in a checksum, and must not cost a tensor whose bytes have the
// other one. More than that, and what has the one checksum may be another record's.
Remains::Found Remains::decide(const std::vector<Evidence>& equal) const {
  std::vector<Record> whole;
  for (const auto& [record, ignored] : equal) {
    for (const Evidence& other : equal)
      if (std::popcount(record.crc32 ^ other.record.crc32) > 1)
        return {std::nullopt, fmt::format("the checksums that the file has for its record {} "
                                          "contradict each other",
                                          shown(record.name))};
    if (is_whole(record)) whole.push_back(record);
  }
  if (whole.size() > 1)
    return {std::nullopt,
            fmt::format("the file has several records {}", shown(whole.front().name))};
  return {whole.empty() ? equal.front().record : whole.front(), {}};
}

// That several places have to be compared is rare, unless the file means harm.
bool Remains::is_whole(const Record& record) const {
  constexpr std::uint64_t kPatience = 8;
  if (compared_ > kPatience * source_->size()) return false;
  compared_ += record.size;
  bool whole = true;
  const RecordRead read{.record = &record,
                        .block_size = std::max<std::uint64_t>(record.size, 1),
                        .checksums = std::span(&record.crc32, 1),
                        .into = {}};
  bulk_read(*source_, {read}, [&](const RecordRead&, const DamagedBlock&) { whole = false; });
  return whole;
}

std::string Remains::why_absent(std::string_view name, std::optional<std::uint64_t> size) const {
  const Claims claims = claims_of(name);
  if (claims.empty())
    return fmt::format(
        "its record {} is not there: it lay beyond the end of the file, or its zip "
        "header is damaged",
        shown(name));
  for (const RecordClaim& claim : claims)
    if (size && *size > source_->size() - claim.data_offset)
      return fmt::format("its record {} at offset {} reaches beyond the end of the file",
                         shown(name), claim.data_offset);
  return fmt::format("no checksum for its record {} at offset {} is left in the file", shown(name),
                     claims.front().data_offset);
}

RecordRead Remains::read_of(const Record& record, MutableBytes into) const {
  RecordRead read{.record = &record,
                  .block_size = record.size,
                  .checksums = std::span(&record.crc32, 1),
                  .into = into};
  const format::StorageChecksums* sums = indexed(record.name);
  if (sums == nullptr || sums->data_offset != record.offset || sums->size != record.size ||
      sums->crc32 != record.crc32 || format::combined(*sums, index_->block_size) != record.crc32)
    return read;
  read.block_size = index_->block_size;
  read.checksums = sums->blocks;
  return read;
}

std::optional<std::string> Remains::read_text(std::string_view name) const {
  const Found found = find(name);
  if (!found.record || found.record->size > format::kMaxPickle) return std::nullopt;
  std::string text(found.record->size, '\0');
  const auto bytes = std::as_writable_bytes(std::span(text));
  source_->read(found.record->offset, bytes);
  if (format::crc32(bytes) != found.record->crc32) return std::nullopt;
  return text;
}

std::vector<std::pair<std::string, std::uint64_t>> Remains::sized_storages() const {
  std::vector<std::pair<std::string, std::uint64_t>> out;
  for (const RecordClaim& claim : claims_)
    if (claim.size && is_storage(claim.name))
      out.emplace_back(claim.name.substr(kFolder.size()), *claim.size);
  return out;
}

}  // namespace perdure::engine
