// Who writes what of a state that several ranks have, and that each item of what they write is a
// file that every reader takes.
#include "engine/rank_plan.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "engine/owned_tensor.hpp"
#include "expect_error.hpp"
#include "format/coding.hpp"
#include "format/contents.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"

namespace perdure::test {
namespace {

using engine::PlacedItem;
using engine::RankPiece;
using engine::RankPlan;
using engine::RankRoles;

Tensor numbers(std::vector<std::int64_t> shape, float first = 0,
               Liveness liveness = Liveness::stepped) {
  std::int64_t count = 1;
  for (const auto size : shape) count *= size;
  std::vector<float> data(static_cast<std::size_t>(count));
  std::iota(data.begin(), data.end(), first);
  Tensor tensor = owned(std::move(data));
  tensor.shape = std::move(shape);
  tensor.strides.assign(tensor.shape.size(), 1);
  for (std::size_t d = tensor.shape.size(); d-- > 1;)
    tensor.strides[d - 1] = tensor.strides[d] * tensor.shape[d];
  tensor.liveness = liveness;
  return tensor;
}

RankRoles roles_of(std::size_t rank, std::size_t ranks, std::vector<Shard> shards = {}) {
  return {rank, ranks, {"model", "optimizer"}, std::move(shards)};
}

// The file, as who writes it puts it together.
std::string file_of(const RankPlan& plan) {
  std::string out;
  std::vector<format::StorageChecksums> sums;
  for (std::size_t i = 0; i < plan.tensors().size(); ++i) {
    const format::TensorRecord& record = plan.tensors()[i];
    EXPECT_EQ(out.size(), record.header_offset);
    out += plan.header(i);
    EXPECT_EQ(out.size(), record.data_offset);
    out.append(reinterpret_cast<const char*>(record.bytes.data()), record.bytes.size());
    const std::uint32_t sum = format::crc32(record.bytes);
    out += plan.descriptor(i, sum);
    EXPECT_EQ(out.size(), record.end);
    sums.push_back({record.data_offset, record.bytes.size(), sum, {}});
  }
  EXPECT_EQ(out.size(), plan.tail_offset());
  out += plan.tail(sums);
  EXPECT_EQ(out.size(), plan.file_size());
  return out;
}

Value read_item(const std::string& file, const PlacedItem& place) {
  EXPECT_EQ(place.offset % format::kAlignment, 0U);
  EXPECT_LE(place.offset + place.length, file.size());
  return load_bytes(file.substr(place.offset, place.length));
}

float at(const Tensor& tensor, const std::vector<std::int64_t>& place) {
  std::int64_t offset = tensor.storage_offset;
  for (std::size_t d = 0; d < place.size(); ++d) offset += place[d] * tensor.strides[d];
  float value = 0;
  std::memcpy(&value, tensor.storage->data + offset * 4, 4);
  return value;
}

// The plans of all ranks, each item of them read.
struct Written {
  std::vector<std::unique_ptr<RankPlan>> plans;
  std::vector<std::string> files;

  Written(std::size_t ranks, const std::function<Value(std::size_t)>& state_of,
          const std::function<std::vector<Shard>(std::size_t)>& shards_of = {}) {
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const RankRoles roles =
          roles_of(rank, ranks, shards_of ? shards_of(rank) : std::vector<Shard>());
      states.push_back(state_of(rank));
      plans.push_back(std::make_unique<RankPlan>(states.back(), roles, nullptr));
      files.push_back(file_of(*plans.back()));
    }
  }

  std::vector<std::pair<std::size_t, RankPiece>> pieces_of(const std::string& name) const {
    std::vector<std::pair<std::size_t, RankPiece>> found;
    for (std::size_t rank = 0; rank < plans.size(); ++rank)
      for (const RankPiece& piece : plans[rank]->pieces())
        if (piece.name == name) found.emplace_back(rank, piece);
    return found;
  }

  // That each element of `whole` is in one piece, and right.
  void expect_once(const std::string& name, const Tensor& whole) const {
    SCOPED_TRACE(name + " of " + std::to_string(plans.size()));
    std::map<std::vector<std::int64_t>, int> seen;
    for (const auto& [rank, piece] : pieces_of(name)) {
      EXPECT_EQ(piece.shape, whole.shape);
      EXPECT_EQ(piece.dtype, whole.dtype);
      const Value value = read_item(files[rank], piece.place);
      ASSERT_EQ(value.kind(), Kind::tensor);
      const Tensor& part = value.as_tensor();
      ASSERT_EQ(part.shape, piece.sizes);
      EXPECT_FALSE(part.requires_grad || part.parameter);
      std::vector<std::int64_t> place(piece.sizes.size());
      for (std::uint64_t i = 0; i < part.numel(); ++i) {
        std::vector<std::int64_t> in_whole = place;
        for (std::size_t d = 0; d < place.size(); ++d) in_whole[d] += piece.offsets[d];
        ++seen[in_whole];
        if (at(part, place) != at(whole, in_whole)) {
          ADD_FAILURE() << "another number at " << format_path({in_whole.begin(), in_whole.end()});
          return;
        }
        for (std::size_t d = place.size(); d-- > 0;) {
          if (++place[d] < piece.sizes[d]) break;
          place[d] = 0;
        }
      }
    }
    EXPECT_EQ(seen.size(), whole.numel());
    for (const auto& [place, times] : seen) ASSERT_EQ(times, 1);
  }

  // The state as the record of a rank tells it.
  Value record(std::size_t rank) const {
    EXPECT_EQ(plans[rank]->values().back().name, engine::record_name(rank));
    return read_item(files[rank], plans[rank]->values().back().place);
  }

  std::vector<Value> states;  // the memory
};

constexpr std::size_t kCounts[] = {1, 2, 3, 5};

TEST(RankPlanTest, EveryElementOfWhatIsSharedIsWrittenOnce) {
  const Tensor large = numbers({1501, 1000});  // 6 MB
  const Tensor flat = numbers({1'500'001}, 7);
  const Tensor few_rows = numbers({2, 700'000});
  const Tensor scalar = numbers({}, 42);
  const Tensor cube = numbers({3, 4, 5}, 3);
  for (const std::size_t ranks : kCounts) {
    const Written all(ranks, [&](std::size_t) {
      return Dict{{"model", Dict{{"large", large}, {"flat", flat}, {"few", few_rows}}},
                  {"optimizer", Dict{{"state", Dict{{0, Dict{{"step", scalar}, {"m", cube}}}}}}}};
    });
    // Element by element takes its time: of the large ones, the rows.
    for (const auto& [name, whole] :
         {std::pair{"model.large", large}, {"model.flat", flat}, {"model.few", few_rows}}) {
      std::int64_t row = 0;
      for (const auto& [rank, piece] : all.pieces_of(name)) {
        EXPECT_EQ(piece.offsets[0], row);
        row += piece.sizes[0];
        const Tensor part = read_item(all.files[rank], piece.place).as_tensor();
        ASSERT_EQ(part.shape, piece.sizes);
        const auto [begin, end] = part.byte_range();
        const std::size_t row_bytes = whole.numel() / static_cast<std::size_t>(whole.shape[0]) * 4;
        EXPECT_EQ(std::memcmp(
                      part.storage->data + begin,
                      whole.storage->data + static_cast<std::size_t>(piece.offsets[0]) * row_bytes,
                      end - begin),
                  0);
        EXPECT_EQ(end - begin, static_cast<std::size_t>(piece.sizes[0]) * row_bytes);
      }
      EXPECT_EQ(row, whole.shape[0]);
    }
    all.expect_once("optimizer.state.0.step", scalar);
    all.expect_once("optimizer.state.0.m", cube);
    EXPECT_EQ(all.pieces_of("model.large").size(), ranks);
    EXPECT_EQ(all.pieces_of("model.flat").size(), ranks);
    EXPECT_EQ(all.pieces_of("model.few").size(), ranks <= 2 ? ranks : 1);  // rows
    EXPECT_EQ(all.pieces_of("optimizer.state.0.m").size(), 1U);            // too small
    // The bytes are balanced.
    const auto [least, most] = std::ranges::minmax(all.files, {}, &std::string::size);
    EXPECT_LT(most.size(), least.size() + (6U << 20));
  }
}

TEST(RankPlanTest, SmallOnesGoWholeToAllOfTheRanks) {
  Dict model;
  for (int i = 0; i < 100; ++i)
    model.set("w" + std::to_string(i), numbers({3, 5}, static_cast<float>(i)));
  for (const std::size_t ranks : kCounts) {
    const Written all(ranks, [&](std::size_t) { return Dict{{"model", model}}; });
    for (const auto& [name, tensor] : model)
      all.expect_once("model." + name.as_string(), tensor.as_tensor());
    for (const auto& plan : all.plans) EXPECT_GT(plan->pieces().size(), 100 / ranks / 3);
  }
}

// A reader tells by the places that they are one.
TEST(RankPlanTest, TiedTensorsAreWrittenOnce) {
  const Tensor small = numbers({4, 5}), large = numbers({1501, 1000});
  for (const std::size_t ranks : kCounts) {
    Dict model{{"large", large}, {"head", large}};
    for (int i = 0; i < 9; ++i) model.set("tied " + std::to_string(i), small);
    const Written all(ranks, [&](std::size_t) { return Dict{{"model", model}}; });
    const auto places = [&](const std::string& name) {
      std::vector<std::pair<std::size_t, std::uint64_t>> found;
      for (const auto& [rank, piece] : all.pieces_of(name))
        found.emplace_back(rank, piece.place.offset);
      return found;
    };
    EXPECT_EQ(places("model.large"), places("model.head"));
    for (int i = 0; i < 9; ++i) {
      EXPECT_EQ(places("model.tied " + std::to_string(i)), places("model.tied 0"));
      all.expect_once("model.tied " + std::to_string(i), small);
    }
    std::size_t records = 0;
    for (const auto& plan : all.plans) records += plan->tensors().size();
    EXPECT_EQ(records, ranks + 1);
  }
}

TEST(RankPlanTest, OtherViewsOfTheSameMemoryAreOthers) {
  const Tensor whole = numbers({4, 6});
  Tensor turned = whole, front = whole;
  turned.shape = {6, 4};
  turned.strides = {1, 6};
  front.shape = {2, 6};
  for (const std::size_t ranks : kCounts) {
    const Written all(ranks, [&](std::size_t) {
      return Dict{{"model", Dict{{"whole", whole}, {"turned", turned}, {"front", front}}}};
    });
    all.expect_once("model.whole", whole);
    all.expect_once("model.turned", turned);
    all.expect_once("model.front", front);
  }
}

TEST(RankPlanTest, WhatIsNotContiguousIsWrittenWhole) {
  Tensor columns = numbers({1200, 2000});
  columns.shape = {2000, 1200};
  columns.strides = {1, 2000};
  Tensor every_third = numbers({300});
  every_third.shape = {99};
  every_third.strides = {3};
  every_third.storage_offset = 2;
  for (const std::size_t ranks : {1, 2, 3}) {
    const Written all(ranks, [&](std::size_t) {
      return Dict{{"model", Dict{{"columns", columns}, {"third", every_third}}}};
    });
    const auto pieces = all.pieces_of("model.columns");
    ASSERT_EQ(pieces.size(), 1U);
    const Tensor read = read_item(all.files[pieces[0].first], pieces[0].second.place).as_tensor();
    for (const std::vector<std::int64_t>& place :
         {std::vector<std::int64_t>{0, 0}, {1999, 1199}, {1999, 0}, {7, 1000}})
      EXPECT_EQ(at(read, place), at(columns, place));
    all.expect_once("model.third", every_third);
  }
}

TEST(RankPlanTest, WhatIsEmptyIsNamedAndTaken) {
  const Tensor empty = numbers({0, 3});
  for (const std::size_t ranks : kCounts) {
    const Written all(ranks, [&](std::size_t) {
      return Dict{{"model", Dict{{"empty", empty}, {"other", numbers({5, 0}, 0, Liveness::live)}}}};
    });
    ASSERT_EQ(all.pieces_of("model.empty").size(), 1U);
    ASSERT_EQ(all.pieces_of("model.other").size(), 1U);
    all.expect_once("model.empty", empty);
  }
}

// What no optimizer steps may differ between the ranks: that of rank 0 counts.
TEST(RankPlanTest, BuffersAreThoseOfRank0) {
  for (const Liveness liveness : {Liveness::live, Liveness::detached}) {
    const auto mean_of = [&](std::size_t rank) {
      return numbers({3}, static_cast<float>(100 * rank), liveness);
    };
    const Written all(
        3, [&](std::size_t rank) { return Dict{{"model", Dict{{"mean", mean_of(rank)}}}}; });
    const auto pieces = all.pieces_of("model.mean");
    ASSERT_EQ(pieces.size(), 1U);
    EXPECT_EQ(pieces[0].first, 0U);
    all.expect_once("model.mean", mean_of(0));
  }
}

TEST(RankPlanTest, WhatIsARanksOwnIsInItsRecord) {
  const Written all(3, [](std::size_t rank) {
    return Dict{{"model", Dict{{"w", numbers({4})}, {"note", "of " + std::to_string(rank)}}},
                {"position", rank},
                {"seen", Dict{{"ids", numbers({2}, static_cast<float>(rank))}}},
                {"history", Value::list({1, 2.5, nullptr})}};
  });
  for (std::size_t rank = 0; rank < 3; ++rank) {
    const Value record = all.record(rank);
    EXPECT_EQ(record["position"].as_int(), static_cast<std::int64_t>(rank));
    EXPECT_EQ(record["model"]["note"].as_string(), "of " + std::to_string(rank));
    EXPECT_EQ(at(record["seen"]["ids"].as_tensor(), {0}), static_cast<float>(rank));
    EXPECT_EQ(record["history"][1].as_double(), 2.5);
    EXPECT_EQ(record["model"]["w"]["__perdure__"].as_string(), "tensor");
    EXPECT_EQ(record["model"]["w"]["name"].as_string(), "model.w");
    EXPECT_TRUE(all.pieces_of("seen.ids").empty());
  }
  // For readers of DCP rank 0 has its values as items, too.
  std::vector<std::string> names;
  for (const auto& value : all.plans[0]->values()) names.push_back(value.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"model.note", "position", "seen.ids", "history", "ranks.0"}));
  EXPECT_EQ(read_item(all.files[0], all.plans[0]->values()[1].place).as_int(), 0);
  EXPECT_EQ(all.plans[1]->values().size(), 1U);
}

TEST(RankPlanTest, ShardsAreWrittenByOneOfThoseThatHaveThem) {
  const Tensor whole = numbers({3000, 1000}), small = numbers({6, 4}, 5);
  // Ranks 0 and 1 have the upper half, 2 and 3 the lower one: a mesh of 2 x 2.
  const auto half = [](const Tensor& of, std::size_t rank) {
    Tensor part = of;
    part.shape[0] /= 2;
    part.storage_offset = rank < 2 ? 0 : part.shape[0] * part.strides[0];
    return part;
  };
  const Written all(
      4,
      [&](std::size_t rank) {
        return Dict{{"model", Dict{{"whole", half(whole, rank)}, {"small", half(small, rank)}}}};
      },
      [&](std::size_t rank) {
        std::vector<Shard> shards;
        for (const auto& [name, tensor] : {std::pair{"whole", whole}, {"small", small}}) {
          const std::int64_t rows = tensor.shape[0] / 2;
          shards.push_back({{"model", name},
                            tensor.shape,
                            {rank < 2 ? 0 : rows, 0},
                            {rows, tensor.shape[1]},
                            rank % 2,
                            2});
        }
        return shards;
      });
  all.expect_once("model.small", small);
  EXPECT_EQ(all.pieces_of("model.small").size(), 2U);
  const auto pieces = all.pieces_of("model.whole");
  ASSERT_EQ(pieces.size(), 4U);
  std::int64_t row = 0;
  for (const auto& [rank, piece] : pieces) {
    EXPECT_EQ(piece.offsets[0], row);
    row += piece.sizes[0];
    const Tensor part = read_item(all.files[rank], piece.place).as_tensor();
    EXPECT_EQ(at(part, {0, 0}), at(whole, {piece.offsets[0], 0}));
    EXPECT_EQ(at(part, {piece.sizes[0] - 1, 999}), at(whole, {row - 1, 999}));
  }
  EXPECT_EQ(row, 3000);
}

TEST(RankPlanTest, AnEmptyShardIsNamedAndNotWritten) {
  const Tensor whole = numbers({2, 3});
  const auto rows_of = [](std::size_t rank) { return rank < 2 ? 1 : 0; };
  const Written all(
      3,
      [&](std::size_t rank) {
        Tensor part = whole;
        part.shape[0] = rows_of(rank);
        part.storage_offset = rank == 1 ? 3 : 0;
        return Dict{{"model", Dict{{"w", part}}}};
      },
      [&](std::size_t rank) {
        return std::vector<Shard>{{{"model", "w"},
                                   {2, 3},
                                   {std::min<std::int64_t>(2, static_cast<std::int64_t>(rank)), 0},
                                   {rows_of(rank), 3}}};
      });
  all.expect_once("model.w", whole);
  EXPECT_TRUE(all.plans[2]->pieces().empty());
  for (std::size_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(all.plans[rank]->named().size(), 1U);
    EXPECT_EQ(all.record(rank)["model"]["w"]["name"].as_string(), "model.w");
  }
}

TEST(RankPlanTest, RefusesWhatItCannotHold) {
  const auto refused = [](const std::string& part, const Value& state,
                          std::vector<Shard> shards = {}) {
    EXPECT_ERROR(invalid, part, RankPlan(state, roles_of(0, 2, std::move(shards)), nullptr));
  };
  refused("a dict is wanted", Value(3));
  refused("a dict is wanted", Value::list({1}));
  refused("'ranks' is one of perdure's own", Dict{{"ranks", 1}});
  refused("rename one", Dict{{"a.b", 1}, {"a", Dict{{"b", 2}}}});
  const Shard shard{{"model", "w"}, {8, 2}, {0, 0}, {4, 2}};
  refused("should be a box", Dict{{"model", Dict{{"w", numbers({3, 2})}}}}, {shard});
  Tensor meta = numbers({4, 2});
  meta.storage->device = "meta";
  refused("meta device", Dict{{"model", Dict{{"w", meta}}}}, {shard});
  Tensor negated = numbers({4, 2});
  negated.neg = true;
  refused("negated", Dict{{"model", Dict{{"w", negated}}}}, {shard});
  refused("x: state[0]", Dict{{"x", Value::list({Value::opaque({"__main__", "Config", {}, {}})})}});
}

// What was planned for the last save is used again where it fits, and only there.
TEST(RankPlanTest, TheNextPlanIsTheSameWithAndWithoutTheLast) {
  RankPlan::Items cache;
  const auto state_of = [](std::int64_t step) {
    Dict model{{"a", numbers({4}, static_cast<float>(step))}};
    if (step >= 3) model.set("more", numbers({2, 2}));
    model.set("b", step % 2 == 0 ? numbers({5}) : numbers({5, static_cast<std::int64_t>(step)}));
    return Value(Dict{{"model", model}, {"step", step}});
  };
  for (std::int64_t step = 0; step < 6; ++step) {
    const Value state = state_of(step);
    EXPECT_EQ(file_of(RankPlan(state, roles_of(0, 1), &cache)),
              file_of(RankPlan(state, roles_of(0, 1), nullptr)));
  }
  const auto kept = cache;
  const Value state = state_of(5);
  RankPlan(state, roles_of(0, 1), &cache);
  EXPECT_EQ(cache, kept);
}

TEST(RankPlanTest, ErrorsNameTheTensor) {
  const Value state = Dict{{"model", Dict{{"a", numbers({4})}, {"b", numbers({4}, 5)}}}};
  const RankPlan plan(state, roles_of(0, 1), nullptr);
  EXPECT_EQ(plan.tensor_name(1, state), "model.b");
}

}  // namespace
}  // namespace perdure::test
