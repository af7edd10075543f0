// A layout that is used again gives the same bytes as one that is made anew.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <functional>
#include <random>

#include "expect_error.hpp"
#include "format/encoder.hpp"

namespace perdure::test {
namespace {

std::array<std::byte, 4096> memory = [] {
  std::array<std::byte, 4096> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 % 251);
  return bytes;
}();

Tensor tensor(std::size_t at, std::vector<std::int64_t> shape = {4}) {
  return Tensor::over(memory.data() + at, DType::float32, std::move(shape));
}

std::string file_of(const Value& state, format::LayoutCache* cache) {
  std::string out;
  const format::Encoder encoder(state, {}, cache);
  encoder.write([&](ConstBytes bytes) {
    out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  EXPECT_EQ(out.size(), encoder.file_size());
  return out;
}

class LayoutTest : public ::testing::Test {
 protected:
  // Saves it and expects what a first save would give.
  void save() { EXPECT_TRUE(file_of(state, &cache) == file_of(state, nullptr)); }

  // Whether a save of `state` uses the layout of the one before: the lines are the same memory.
  bool is_reused() {
    const auto before = cache.lay_out(state).layout;
    save();
    return cache.lay_out(state).layout == before;
  }
  // Saves, changes, saves. Returns whether the layout was used again.
  bool is_reused_after(const std::function<void()>& change) {
    save();
    const auto before = cache.lay_out(state).layout;
    change();
    save();
    return cache.lay_out(state).layout == before;
  }

  Dict& dict() { return state.as_dict(); }
  Dict& kept() { return dict().find("kept")->as_dict(); }
  void set(const char* key, Value value) { dict().set(key, std::move(value)); }

  Value keeper;
  Value state = make_state();
  format::LayoutCache cache;

 private:
  Value make_state() {
    const Value pair = Value::tuple({0.9, 0.99});
    Dict inner{{"w", Value(tensor(0))}, {"lr", 0.5}, {"betas", pair}, {"again", pair}};
    inner.set(3, Value(tensor(64))).set("n", Value::list({1, 2, Value(), true}));
    keeper = Value(std::move(inner));
    keeper.as_dict().keep_as(1);
    const Value list = Value::list({1, "a"});
    return Value(Dict{{"kept", keeper},
                      {"epoch", 1},
                      {"loose", Value(tensor(128))},
                      {"twice", Value::list({list, list})},
                      {"name", "run"},
                      {"best", 0.5}});
  }
};

TEST_F(LayoutTest, IsUsedAgainForTheSameState) {
  EXPECT_TRUE(is_reused_after([] {}));
}

TEST_F(LayoutTest, IsUsedAgainWithOtherNumbers) {
  for (const Value& x : {Value(300), Value(70000), Value(-1), Value(INT64_MIN), Value(0.25),
                         Value(), Value(true), Value(~std::uint64_t{0})})
    EXPECT_TRUE(is_reused_after([&] {
      set("epoch", x);
      kept().value_at(1) = x;
      kept().find("n")->as_items()[0] = x;
    })) << repr(x);
}

TEST_F(LayoutTest, IsUsedAgainWhereLooseMemoryMoves) {
  EXPECT_TRUE(is_reused_after([&] { set("loose", Value(tensor(512))); }));
  memory[513] = std::byte{99};
  save();
}

TEST_F(LayoutTest, IsMadeAnewForAnotherStructure) {
  const std::pair<const char*, std::function<void()>> changes[] = {
      {"a key more", [&] { set("new", 1); }},
      {"a text", [&] { set("name", "other"); }},
      {"a text for a number", [&] { set("best", "none yet"); }},
      {"a complex number", [&] { set("name", std::complex<double>(0, 1)); }},
      {"another complex number", [&] { set("name", std::complex<double>(-0.0, 1)); }},
      {"a dtype", [&] { set("name", DType::int8); }},
      {"another dtype", [&] { set("name", DType::int16); }},
      {"a container for a number", [&] { set("best", Value::list({})); }},
      {"another kind of container", [&] { set("best", Value::tuple({})); }},
      {"a shape", [&] { set("loose", Value(tensor(128, {2, 2}))); }},
      {"a tensor more", [&] { set("other", Value(tensor(192))); }},
      {"memory that is shared", [&] { set("other", dict().at("loose")); }},
      {"copies of what was one",
       [&] { set("twice", Value::list({Value::list({1, "a"}), Value::list({1, "a"})})); }},
      {"an integer key", [&] { set("best", Value(Dict{{1, 2}})); }},
      {"another integer key", [&] { set("best", Value(Dict{{7, 2}})); }},
      {"a real key", [&] { set("best", Value(Dict{{7.5, 2}})); }},
      {"a kept tree of another structure", [&] {
         kept().set("more", "x");
         kept().keep_as(2);
       }}};
  for (const auto& [what, change] : changes) EXPECT_FALSE(is_reused_after(change)) << what;
}

// Then the numbers of the records are no longer a matter of structure.
TEST_F(LayoutTest, IsMadeAnewWhereLooseMemoryIsThatOfAKeptTree) {
  EXPECT_FALSE(is_reused_after([&] { set("loose", Value(tensor(64))); }));
  EXPECT_FALSE(is_reused_after([&] { set("loose", Value(tensor(128))); }));
  EXPECT_TRUE(is_reused());
}

TEST_F(LayoutTest, AKeeperMakesNoSharedContainer) {
  const std::string with = file_of(state, nullptr);
  keeper = Value();
  kept().keep_as(0);
  EXPECT_TRUE(file_of(state, nullptr) == with);
  const Dict copy = kept();
  kept().keep_as(1);
  EXPECT_EQ(copy.structure(), 0u);
  EXPECT_EQ(Dict(kept()).structure(), 0u);
}

TEST_F(LayoutTest, ANumberThatNoFileHoldsIsRefusedWithItsPlace) {
  const Value huge(BigInt{std::string(300, '\x42')});
  for (const bool in_kept : {false, true}) {
    save();
    Value& place = in_kept ? kept().value_at(1) : *dict().find("epoch");
    const Value before = std::exchange(place, huge);
    EXPECT_ERROR(invalid,
                 in_kept ? "state['kept']['lr']: an int of more" : "state['epoch']: an int",
                 file_of(state, &cache));
    place = before;
    save();
  }
}

TEST_F(LayoutTest, StatesThatItDoesNotFitDoNotDisturbIt) {
  save();
  Value list = Value::list({});
  list.as_items().push_back(list);
  EXPECT_ERROR(invalid, "contains itself", file_of(list, &cache));
  list.as_items().clear();
  Value deep = Value::list({});
  for (int i = 0; i < 600; ++i) deep = Value::list({deep});
  EXPECT_ERROR(invalid, "nested more than", file_of(deep, &cache));
  EXPECT_TRUE(file_of(Value(1), &cache) == file_of(Value(1), nullptr));
  EXPECT_TRUE(file_of(Value(Dict{}), &cache) == file_of(Value(Dict{}), nullptr));
  save();
}

// The encoder may be used after the state is gone, and after the next one was made.
TEST_F(LayoutTest, AnEncoderStandsAlone) {
  const std::string expected = file_of(state, nullptr);
  auto encoder = std::make_unique<format::Encoder>(state, CheckpointInfo{}, &cache);
  set("name", "other");
  file_of(state, &cache);
  state = Value();
  cache = {};
  std::string out;
  encoder->write([&](ConstBytes bytes) {
    out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  EXPECT_TRUE(out == expected);
}

// Random states, each a small change of the one before.
class RandomState {
 public:
  explicit RandomState(unsigned seed) : random_(seed) {
    for (int i = 0; i < 6; ++i) root_.as_dict().set(i, make(3));
  }
  const Value& state() const { return root_; }
  void change() {
    Value& place = root_.as_dict().value_at(pick(root_.as_dict().size()));
    if (pick(3) == 0)
      place = make(3);
    else
      renew(place);
  }

 private:
  std::size_t pick(std::size_t n) { return random_() % n; }
  Value number() {
    const std::array<Value, 6> all = {1, 256, -70000, 0.5, Value(), false};
    return all[pick(all.size())];
  }
  Value make(int depth) {
    if (depth > 0 && pick(3) == 0)
      return made_.emplace_back(Value::list({make(depth - 1), make(0)}));
    if (depth > 0 && pick(3) == 0) return Value(Dict{{"a", make(depth - 1)}, {number(), make(0)}});
    if (!made_.empty() && pick(5) == 0) return made_[pick(made_.size())];
    if (pick(3) == 0) return made_.emplace_back(tensor(16 * pick(20), {1, 2}));
    return pick(4) == 0 ? Value(std::string(pick(3), '1')) : number();
  }
  void renew(Value& value) {
    if (value.kind() == Kind::list)
      for (Value& item : value.as_items()) renew(item);
    else if (value.is_mapping())
      renew(value.as_dict().value_at(0));
    else if (value.kind() == Kind::tensor)
      value.as_tensor().storage = tensor(16 * pick(20)).storage;
    else
      value = pick(9) == 0 ? Value("text") : number();
  }

  std::mt19937 random_;
  std::vector<Value> made_;
  Value root_{Dict{}};
};

TEST(RandomLayouts, GiveTheBytesOfAFirstSave) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    RandomState random(seed);
    format::LayoutCache cache;
    for (int i = 0; i < 12; ++i) {
      ASSERT_TRUE(file_of(random.state(), &cache) == file_of(random.state(), nullptr))
          << "seed " << seed << ", change " << i;
      random.change();
    }
  }
}

}  // namespace
}  // namespace perdure::test
