#include "engine/rank_save.hpp"

#include <fmt/format.h>

#include <chrono>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "engine/rank_view.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/dcp_writer.hpp"
#include "format/json.hpp"
#include "format/ranks_json.hpp"
#include "storage/new_directory.hpp"

namespace perdure::engine {
namespace {

constexpr std::size_t kMaxDepth = 8;

constexpr std::chrono::seconds kLastWait{5};

std::string heard_by(std::size_t rank) { return fmt::format("heard/{}", rank); }
std::string file_of(std::size_t rank) { return fmt::format("__{}_0.distcp", rank); }
std::string key_of(std::uint64_t generation) { return fmt::format("save/{}", generation); }

Value list_of(const std::vector<std::int64_t>& numbers) {
  return Value::list({numbers.begin(), numbers.end()});
}

std::vector<std::int64_t> numbers_in(const Value& list) {
  std::vector<std::int64_t> numbers;
  for (const Value& item : list.as_items()) numbers.push_back(item.as_int());
  return numbers;
}

Value value_of(const PlacedItem& place) { return Value::list({place.offset, place.length}); }

PlacedItem place_in(const Value& list) {
  return {static_cast<std::uint64_t>(list[0].as_int()),
          static_cast<std::uint64_t>(list[1].as_int())};
}

std::uint64_t elements(const std::vector<std::int64_t>& sizes) {
  std::uint64_t count = 1;
  for (const std::int64_t size : sizes) count *= static_cast<std::uint64_t>(size);
  return count;
}

// .metadata, from what each rank has written.
class Assembly {
 public:
  explicit Assembly(const RankPlan& plan) {
    for (const RankPlan::Named& named : plan.named()) {
      places_.emplace(named.name, metadata_.items.size());
      metadata_.items.push_back({.name = named.name,
                                 .path = named.path,
                                 .is_tensor = true,
                                 .dtype = named.dtype,
                                 .shape = named.shape,
                                 .chunks = {}});
    }
    metadata_.files.push_back(file_of(0));
    add(0, plan.pieces());
    for (const RankValue& value : plan.values()) add_value(value.name, value.path, 0, value.place);
  }

  void add_rank(std::size_t rank, const std::vector<RankPiece>& pieces, const PlacedItem& record) {
    metadata_.files.push_back(file_of(rank));
    add(rank, pieces);
    add_value(record_name(rank), {Value(kRanksKey), Value(std::to_string(rank))}, rank, record);
  }

  // Error(invalid) where something is missing, or it is more than a reader takes.
  std::string finish() const {
    for (const format::DcpItem& item : metadata_.items) {
      if (!item.is_tensor) continue;
      std::uint64_t found = 0;
      for (const format::DcpChunk& chunk : item.chunks) found += elements(chunk.sizes);
      if (found != elements(item.shape) || item.chunks.empty())
        throw Error(ErrorCode::invalid,
                    fmt::format("of the tensor {}, which has {} elements, the ranks have {}: do "
                                "all of them have the same model and optimizer?",
                                item.name, elements(item.shape), found));
    }
    std::string text = format::write_dcp_metadata(metadata_);
    try {
      format::read_dcp_metadata(text);
    } catch (const Error& error) {
      throw Error(ErrorCode::invalid,
                  fmt::format("what the ranks have would be a checkpoint that cannot be read: {}",
                              error.what()));
    }
    return text;
  }

 private:
  void add(std::size_t rank, const std::vector<RankPiece>& pieces) {
    for (const RankPiece& piece : pieces) {
      const auto found = places_.find(piece.name);
      if (found == places_.end())
        throw Error(ErrorCode::invalid,
                    fmt::format("rank {} has the tensor {}, and rank 0 has not: what is not the "
                                "same on all ranks must be part of a DTensor",
                                rank, piece.name));
      format::DcpItem& item = metadata_.items[found->second];
      if (item.dtype != piece.dtype || item.shape != piece.shape)
        throw Error(ErrorCode::invalid,
                    fmt::format("the tensor {} is a {} of {} on rank 0, and a {} of {} on rank {}",
                                piece.name, dtype_name(item.dtype), repr(Value::size(item.shape)),
                                dtype_name(piece.dtype), repr(Value::size(piece.shape)), rank));
      // Ranks that know nothing of each other may have the same box.
      if (!boxes_.emplace(found->second, piece.offsets, piece.sizes).second) continue;
      item.chunks.push_back(
          {piece.offsets, piece.sizes, {rank, piece.place.offset, piece.place.length}});
    }
  }
  void add_value(std::string name, KeyPath path, std::size_t rank, const PlacedItem& place) {
    metadata_.items.push_back({.name = std::move(name),
                               .path = std::move(path),
                               .is_tensor = false,
                               .dtype = DType::float32,
                               .shape = {},
                               .chunks = {{{}, {}, {rank, place.offset, place.length}}}});
  }

  format::DcpMetadata metadata_;
  std::unordered_map<std::string, std::size_t> places_;
  std::set<std::tuple<std::size_t, std::vector<std::int64_t>, std::vector<std::int64_t>>> boxes_;
};

const RankPlan& plan_of(const SaveJob& job) { return dynamic_cast<const RankPlan&>(job.plan()); }

}  // namespace

std::uint64_t RankSaver::save(SaveJob& job, const std::string& name) {
  const std::string key = key_of(job.info().generation);
  try {
    return talk_.leads() ? lead(job, key, name) : follow(job, key);
  } catch (...) {
    job.give_up();
    throw;
  }
}

void RankSaver::refuse(std::uint64_t generation, const std::exception_ptr& why) noexcept {
  const std::string key = key_of(generation);
  try {
    if (talk_.leads())
      talk_.led(key + "/folder", [&]() -> std::string { std::rethrow_exception(why); });
    else
      talk_.tell(fmt::format("{}/{}", key, talk_.rank()), "-" + message_of(why));
  } catch (...) {
    // The others will find out when they have waited long enough.
  }
}

void RankSaver::wait_until_heard() noexcept try {
  if (!talk_.leads() || last_.empty()) return;
  const auto until = std::chrono::steady_clock::now() + kLastWait;
  for (std::size_t rank = 1; rank < talk_.size(); ++rank) {
    const auto heard = [&] {
      return talk_.has(heard_by(rank)) && talk_.hear(heard_by(rank), rank) == last_;
    };
    while (!heard() && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
} catch (...) {
  // Then they will find out that the store is gone.
}

std::uint64_t RankSaver::follow(SaveJob& job, const std::string& key) {
  const std::string own_key = fmt::format("{}/{}", key, talk_.rank());
  const std::string folder = talk_.led(key + "/folder", {});
  try {
    const auto files = run_.open_directory(folder);
    job.write(*files, file_of(talk_.rank()), storage::IfExists::fail,
              [this] { talk_.show_life(); });
    const std::string offer = offer_of(plan_of(job));
    told_.clear();  // until the end: where the save fails, nobody knows what rank 0 has heard
    talk_.tell(own_key, "+" + offer);
  } catch (...) {
    talk_.tell(own_key, "-" + message_of(std::current_exception()));
    // Where the save has failed before, the directory is gone: what failed first is the reason.
    if (talk_.has(key + "/end")) talk_.led(key + "/end", {});
    throw;
  }
  const std::string bytes = talk_.led(key + "/end", {});
  told_ = telling_;
  talk_.tell(heard_by(talk_.rank()), key);
  return std::stoull(bytes);
}

std::uint64_t RankSaver::lead(SaveJob& job, const std::string& key, const std::string& name) {
  std::unique_ptr<storage::NewDirectory> directory;
  talk_.led(key + "/folder", [&] {
    directory = run_.create_directory(name);
    return directory->temporary_name();
  });
  std::string bytes;
  try {
    bytes = talk_.led(key + "/end", [&] {
      job.write(directory->files(), file_of(0), storage::IfExists::fail,
                [this] { talk_.show_life(); });
      return std::to_string(commit(job, key, *directory));
    });
  } catch (...) {
    talk_.forget_later(key + "/folder");
    talk_.forget_later(key + "/end");
    throw;
  }
  last_ = key;
  talk_.all_have_told();
  talk_.forget(key + "/folder");
  talk_.forget_later(key + "/end");
  return std::stoull(bytes);
}

std::uint64_t RankSaver::commit(const SaveJob& job, const std::string& key,
                                storage::NewDirectory& directory) {
  Assembly assembly(plan_of(job));
  format::RanksRecord record{.info = job.info(), .ranks = talk_.size(), .bytes = job.file_size()};
  for (std::size_t from = 1; from < talk_.size(); ++from) {
    const Offer& offer = hear_offer(key, from);
    assembly.add_rank(from, offer.pieces, offer.record);
    record.bytes += offer.size;
  }
  const std::string metadata = assembly.finish();
  record.metadata_size = metadata.size();
  record.metadata_crc32 = format::crc32(format::as_bytes(metadata));
  record.bytes += metadata.size();
  write_text(directory.files(), ".metadata", metadata);
  const std::string text = format::write_ranks_json(record);
  write_text(directory.files(), format::kRanksName, text);
  directory.commit();
  return record.bytes + text.size();
}

std::string RankSaver::offer_of(const RankPlan& plan) {
  Value::Items pieces;
  for (const RankPiece& piece : plan.pieces())
    pieces.push_back(
        Value::list({piece.name, static_cast<int>(piece.dtype), list_of(piece.shape),
                     list_of(piece.offsets), list_of(piece.sizes), value_of(piece.place)}));
  telling_ = format::write_json(Value::list(std::move(pieces)));
  const bool known = told_ == telling_;
  return fmt::format("{}\n{}",
                     format::write_json(Value::list({
                         plan.file_size(),
                         value_of(plan.values().back().place),
                     })),
                     known ? "" : telling_);
}

const RankSaver::Offer& RankSaver::hear_offer(const std::string& key, std::size_t from) {
  const std::string own_key = fmt::format("{}/{}", key, from);
  const std::string message = talk_.hear(own_key, from);
  talk_.forget(own_key);
  if (message.starts_with('-')) std::rethrow_exception(error_in(message.substr(1), from));
  const std::size_t end = message.find('\n');
  const Value head = format::read_json(message.substr(1, end - 1), "an offer", kMaxDepth);
  Offer& offer = known_[from];
  offer.size = static_cast<std::uint64_t>(head[0].as_int());
  offer.record = place_in(head[1]);
  if (end + 1 == message.size()) return offer;
  offer.pieces.clear();
  const Value pieces = format::read_json(message.substr(end + 1), "an offer", kMaxDepth);
  for (const Value& piece : pieces.as_items())
    offer.pieces.push_back({.name = piece[0].as_string(),
                            .dtype = static_cast<DType>(piece[1].as_int()),
                            .shape = numbers_in(piece[2]),
                            .offsets = numbers_in(piece[3]),
                            .sizes = numbers_in(piece[4]),
                            .place = place_in(piece[5])});
  return offer;
}

}  // namespace perdure::engine
