// Restoring straight into the memory of live objects: what goes there, what must not, and what is
// left of a restore that fails half way.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <perdure/checkpoint_manager.hpp>

#include "engine/run_fixture.hpp"
#include "format/memory_source.hpp"
#include "storage/faulty_system.hpp"
#include "storage/local_storage.hpp"

namespace perdure::test {
namespace {

using Floats = std::vector<float>;

// An object with tensors over memory of its own, which says so, and that counts what it is told.
struct Layers {
  std::map<std::string, Tensor> tensors;
  std::set<std::string> without_data;  // at the last check
  std::set<std::string> copied;        // by the last load_state_dict

  void add(const std::string& name, Floats& memory, std::vector<std::int64_t> shape,
           std::vector<std::int64_t> strides = {}, std::int64_t offset = 0) {
    auto& storage = storages_[memory.data()];
    if (!storage) storage = Tensor::over(memory.data(), DType::float32, {0}).storage;
    storage->size = memory.size() * sizeof(float);
    Tensor tensor = Tensor::over(memory.data(), DType::float32, std::move(shape));
    tensor.storage = storage;
    tensor.storage_offset = offset;
    tensor.liveness = Liveness::live;
    if (!strides.empty()) tensor.strides = std::move(strides);
    tensors[name] = std::move(tensor);
  }

 private:
  std::map<const float*, std::shared_ptr<TensorStorage>> storages_;
};

// Element by element, as an object that copies would.
void copy(const Tensor& from, const Tensor& to) {
  std::vector<std::int64_t> at(from.shape.size());
  for (std::uint64_t n = 0; n < from.numel(); ++n) {
    std::int64_t a = from.storage_offset, b = to.storage_offset;
    std::uint64_t left = n;
    for (std::size_t d = at.size(); d-- > 0;) {
      const auto size = static_cast<std::uint64_t>(from.shape[d]);
      a += static_cast<std::int64_t>(left % size) * from.strides[d];
      b += static_cast<std::int64_t>(left % size) * to.strides[d];
      left /= size;
    }
    std::memcpy(to.storage->data + b * 4, from.storage->data + a * 4, 4);
  }
}

}  // namespace
}  // namespace perdure::test

template <>
struct perdure::Adapter<perdure::test::Layers> {
  using T = test::Layers;
  static constexpr Role role = Role::other;
  static Value state_dict(const T& x) {
    Dict dict;
    for (const auto& [name, tensor] : x.tensors) dict.set(name, tensor);
    return dict;
  }
  static Value live(const T& x) { return state_dict(x); }
  static void check(T& x, const Value& value, Problems& problems) {
    x.without_data.clear();
    for (const auto& [name, tensor] : x.tensors) {
      const Tensor& in_file = value[name].as_tensor();
      if (in_file.shape != tensor.shape || in_file.dtype != tensor.dtype)
        problems.push_back(name + ": another shape or dtype");
      if (in_file.storage->data == nullptr) x.without_data.insert(name);
    }
  }
  static void load_state_dict(T& x, const Value& value) {
    x.copied.clear();
    for (const auto& [name, tensor] : x.tensors) {
      const Tensor& in_file = value[name].as_tensor();
      if (in_file.storage->data + in_file.storage_offset * 4 ==
          tensor.storage->data + tensor.storage_offset * 4)
        continue;
      x.copied.insert(name);
      test::copy(in_file, tensor);
    }
  }
};

namespace perdure::test {
namespace {

using Names = std::set<std::string>;

Floats counting(std::size_t size, float from = 0) {
  Floats floats(size);
  std::iota(floats.begin(), floats.end(), from);
  return floats;
}

class LiveRestoreTest : public testing::Test {
 protected:
  // The bytes of a file of `layers`; then its memory is overwritten.
  static std::string saved(const Layers& layers, std::initializer_list<Floats*> memories) {
    TrainingState state;
    Layers copy = layers;
    state.add("layers", copy);
    std::string file = file_of(state.state_dict());
    for (Floats* memory : memories) std::fill(memory->begin(), memory->end(), -1.0F);
    return file;
  }
  void restore(Layers& layers, const std::string& file, bool strict = true) {
    TrainingState state;
    state.add("layers", layers);
    state.restore(CheckpointFile::open(source_of(file)), {.strict = strict});
    EXPECT_FALSE(state.broken());
  }
};

TEST_F(LiveRestoreTest, WhatFitsIsReadInPlace) {
  Floats a = counting(5'000'000), b = counting(3);
  const Floats a_before = a, b_before = b;
  Layers layers;
  layers.add("a", a, {5000, 1000});
  layers.add("b", b, {3});
  restore(layers, saved(layers, {&a, &b}));
  EXPECT_EQ(layers.without_data, (Names{"a", "b"}));
  EXPECT_EQ(layers.copied, Names{});
  EXPECT_EQ(a, a_before);
  EXPECT_EQ(b, b_before);
}

TEST_F(LiveRestoreTest, AnyFormWithoutGapsDoes) {
  Floats permuted = counting(24), transposed = counting(12), empty;
  const Floats before = permuted, before_transposed = transposed;
  Layers layers;
  layers.add("channels last", permuted, {2, 3, 2, 2}, {12, 1, 6, 3});
  layers.add("transposed", transposed, {4, 3}, {1, 4});
  layers.add("empty", empty, {0, 5});
  restore(layers, saved(layers, {&permuted, &transposed}));
  EXPECT_EQ(layers.copied.count("channels last") + layers.copied.count("transposed"), 0U);
  EXPECT_EQ(permuted, before);
  EXPECT_EQ(transposed, before_transposed);
}

TEST_F(LiveRestoreTest, ViewsIntoOneBufferGoToTheirPlaces) {
  Floats flat = counting(100);
  Layers layers;
  layers.add("first", flat, {4, 5}, {}, 10);
  layers.add("second", flat, {20}, {}, 30);
  layers.add("both", flat, {40}, {}, 10);
  restore(layers, saved(layers, {&flat}));
  EXPECT_EQ(layers.copied, Names{});
  Floats expected(100, -1.0F);
  std::iota(expected.begin() + 10, expected.begin() + 50, 10.0F);
  EXPECT_EQ(flat, expected);  // and nothing beside them was touched
}

TEST_F(LiveRestoreTest, WhatLiesBetweenItsElementsIsNotTheirs) {
  Floats strided = counting(20), gap = counting(30);
  Layers layers;
  layers.add("strided", strided, {10}, {2});
  layers.add("before", gap, {10}, {}, 0);
  layers.add("behind", gap, {10}, {}, 20);
  restore(layers, saved(layers, {&strided, &gap}));
  EXPECT_EQ(layers.copied, (Names{"before", "behind", "strided"}));
  EXPECT_EQ(strided[1], -1.0F);
  EXPECT_EQ(strided[18], 18.0F);
  EXPECT_EQ(gap[15], -1.0F);
  EXPECT_EQ(gap[29], 29.0F);
}

TEST_F(LiveRestoreTest, ExpandedTensorsAreCopied) {
  Floats one = counting(4, 7);
  Layers layers;
  layers.add("expanded", one, {3, 4}, {0, 1});
  restore(layers, saved(layers, {&one}));
  EXPECT_EQ(layers.copied, Names{"expanded"});
  EXPECT_EQ(one, counting(4, 7));
}

TEST_F(LiveRestoreTest, OtherStridesAreCopied) {
  Floats a = counting(6), b = counting(6);
  Layers rows, columns;
  rows.add("x", a, {2, 3});
  columns.add("x", b, {2, 3}, {1, 2});
  restore(columns, saved(rows, {&b}));
  EXPECT_EQ(columns.copied, Names{"x"});
  EXPECT_EQ(b, (Floats{0, 3, 1, 4, 2, 5}));
}

TEST_F(LiveRestoreTest, TiedHereAndThereIsReadOnce) {
  Floats shared = counting(8);
  Layers layers;
  layers.add("a", shared, {8});
  layers.add("b", shared, {2, 4});
  restore(layers, saved(layers, {&shared}));
  EXPECT_EQ(layers.copied, Names{});
  EXPECT_EQ(shared, counting(8));
}

// Whether the two values are equal is for the check to see.
TEST_F(LiveRestoreTest, TiedHereAloneHasItsValuesWhenItIsChecked) {
  Floats a = counting(8), b = counting(8, 100), shared(8), other = counting(3);
  Layers apart, tied;
  apart.add("a", a, {8});
  apart.add("b", b, {8});
  apart.add("other", other, {3});
  tied.add("a", shared, {8});
  tied.add("b", shared, {8});
  tied.add("other", other, {3});
  restore(tied, saved(apart, {}));
  EXPECT_EQ(tied.without_data, Names{"other"});
  EXPECT_EQ(tied.copied, (Names{"a", "b"}));
}

TEST_F(LiveRestoreTest, TiedThereAloneIsCopied) {
  Floats shared = counting(8), a(8), b(8);
  Layers tied, apart;
  tied.add("a", shared, {8});
  tied.add("b", shared, {8});
  apart.add("a", a, {8});
  apart.add("b", b, {8});
  restore(apart, saved(tied, {}));
  EXPECT_EQ(apart.copied, (Names{"a", "b"}));
  EXPECT_EQ(a, counting(8));
  EXPECT_EQ(b, counting(8));
}

TEST_F(LiveRestoreTest, WhatIsNotMarkedOrNotThereIsCopied) {
  Floats a = counting(8), b = counting(8);
  Layers layers;
  layers.add("a", a, {8});
  layers.add("b", b, {8});
  layers.tensors["a"].liveness = Liveness::detached;
  layers.tensors["b"].liveness = Liveness::stepped;  // as good as live, here
  restore(layers, saved(layers, {&a, &b}));
  EXPECT_EQ(layers.copied, Names{"a"});
  EXPECT_EQ(a, counting(8));
  EXPECT_EQ(b, counting(8));
}

TEST_F(LiveRestoreTest, WhatAnotherEntryHasTooIsCopied) {
  Floats a = counting(8);
  Layers layers;
  layers.add("a", a, {8});
  Value average = layers.tensors["a"];
  TrainingState state;
  state.add("layers", layers);
  state.add("average", average);
  const std::string file = file_of(state.state_dict());
  state.restore(CheckpointFile::open(source_of(file)));
  EXPECT_EQ(layers.copied, Names{"a"});
  EXPECT_NE(average.as_tensor().storage->data, reinterpret_cast<std::byte*>(a.data()));
}

TEST_F(LiveRestoreTest, NotStrictIsCopied) {
  Floats a = counting(8);
  Layers layers;
  layers.add("a", a, {8});
  restore(layers, saved(layers, {&a}), false);
  EXPECT_EQ(layers.copied, Names{"a"});
  EXPECT_EQ(a, counting(8));
}

TEST_F(LiveRestoreTest, NumbersOfAnOptimizerAreThereToLookAt) {
  Floats step = counting(1, 3), moment = counting(1000);
  Layers layers;
  layers.add("step", step, {});
  layers.add("moment", moment, {1000});
  const Value tree = Adapter<Layers>::state_dict(layers);
  TrainingState state;
  TrainingState::Entry entry;
  entry.name = "optimizer";
  entry.role = Role::optimizer;
  entry.state_dict = entry.live = [&] { return tree; };
  entry.load_state_dict = [](const Value&) {};
  entry.check = [](const Value& value, Problems&) {
    EXPECT_NE(value["step"].as_tensor().storage->data, nullptr);
    EXPECT_EQ(value["moment"].as_tensor().storage->data, nullptr);
  };
  state.add_entry(entry);
  state.restore(CheckpointFile::open(source_of(file_of(state.state_dict()))));
}

TEST_F(LiveRestoreTest, WhatDoesNotFitIsListedAndNothingIsChanged) {
  Floats a = counting(8), b = counting(8), c(9);
  Layers layers, other;
  layers.add("a", a, {8});
  layers.add("b", b, {8});
  other.add("a", a, {8});
  other.add("b", c, {9});
  const std::string file = saved(layers, {&a});
  EXPECT_ERROR(invalid, "b: another shape", restore(other, file));
  EXPECT_EQ(a, Floats(8, -1.0F));
}

class DamagedLiveRestoreTest : public RunFixture {
 protected:
  static constexpr std::size_t kFloats = 3 << 20;  // three blocks
  DamagedLiveRestoreTest() {
    layers.add("large", large, {static_cast<std::int64_t>(kFloats)});
    layers.add("small", small, {100});
    state.add("layers", layers);
    auto manager = open();
    for (state.step = 1; state.step <= 2; ++state.step) {
      set(static_cast<float>(state.step));
      manager.save(state).wait();
    }
    set(-1);
  }
  void set(float x) {
    std::fill(large.begin(), large.end(), x);
    std::fill(small.begin(), small.end(), x);
  }
  void damage_large(const std::filesystem::path& checkpoint, std::size_t block) {
    std::uint64_t offset = 0;
    const CheckpointFile opened = CheckpointFile::open(checkpoint);
    for (const auto& record : opened.records())
      if (record.size == kFloats * sizeof(float)) offset = record.offset;
    std::fstream stream(checkpoint, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekp(static_cast<std::streamoff>(offset + (block << 22) + 5));
    stream.put('\x55');
  }

  Floats large = Floats(kFloats), small = Floats(100);
  Layers layers;
  TrainingState state;
};

TEST_F(DamagedLiveRestoreTest, NothingOfADamagedBlockArrives) {
  damage_large(file(2, 2), 1);
  auto manager = open();
  EXPECT_ERROR(corrupt, "['large']",
               manager.restore(state, {.step = 2, .path = {}, .strict = true}));
  EXPECT_TRUE(state.broken());
  EXPECT_EQ(large[1 << 20], -1.0F);
  EXPECT_EQ(large[(2 << 20) - 1], -1.0F);
  EXPECT_ERROR(invalid, "half way", manager.save(state));
}

TEST_F(DamagedLiveRestoreTest, AnOlderOneMendsIt) {
  damage_large(file(2, 2), 2);
  auto manager = open();
  EXPECT_EQ(manager.restore(state)->step(), 1);
  EXPECT_FALSE(state.broken());
  EXPECT_EQ(large, Floats(kFloats, 1.0F));
  EXPECT_EQ(small, Floats(100, 1.0F));
}

TEST_F(DamagedLiveRestoreTest, NotStrictGetsNothingOfADamagedFile) {
  damage_large(file(2, 2), 2);
  auto manager = open();
  EXPECT_ERROR(corrupt, "['large']",
               manager.restore(state, {.step = 2, .path = {}, .strict = false}));
  EXPECT_FALSE(state.broken());
  EXPECT_EQ(small, Floats(100, -1.0F));
}

TEST_F(DamagedLiveRestoreTest, AnErrorOfTheDiskLeavesItBrokenUntilItIsRestored) {
  FaultySystem system;
  system.all_cached = true;
  {
    CheckpointManager manager(storage::LocalStorage::create_run(system, path), {});
    int before = system.count(Call::pread);
    manager.restore(state);
    const int reads = system.count(Call::pread) - before;
    // The last one is of the history; the one before, of a tensor.
    system.fail(Call::pread, reads - 1, EIO);
    EXPECT_ERROR(io, "", manager.restore(state));
    ASSERT_TRUE(system.fired());
    EXPECT_TRUE(state.broken());
    manager.restore(state);
    EXPECT_FALSE(state.broken());
  }
  EXPECT_EQ(large, Floats(kFloats, 2.0F));
}

}  // namespace
}  // namespace perdure::test
