// Silent damage, many times over: a bit that flips, a page of zeros, two pages that change places,
// a file that ends too early. Load, verify and restore see it, and name the tensor where it lies in
// one; or it is harmless, and all is as it was.
//
// PERDURE_DAMAGES says how many there are. Each has a seed of its own, PERDURE_SEED and up: one
// that fails is made again by PERDURE_SEED=<its seed> PERDURE_DAMAGES=1.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <perdure/checkpoint_manager.hpp>
#include <random>
#include <set>

#include "engine/checkpoint_name.hpp"
#include "engine/file_records.hpp"
#include "engine/run_fixture.hpp"
#include "format/memory_source.hpp"
#include "format/same_value.hpp"
#include "format/torch_file.hpp"
#include "storage/memory_storage.hpp"

namespace perdure::test {
namespace {

constexpr std::size_t kPage = 4096;

std::uint64_t number_from(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
}

// ---- what is damaged

// Tensors over memory of their own, as a model has.
struct Memories {
  std::map<std::string, Tensor> tensors;

  void add(const std::string& name, DType dtype, std::vector<std::int64_t> shape) {
    Tensor tensor = Tensor::over(nullptr, dtype, std::move(shape));
    tensor.storage->data = static_cast<std::byte*>(::operator new(tensor.storage->size + 1));
    tensor.storage->owner = std::shared_ptr<const void>(
        tensor.storage->data, [](const void* p) { ::operator delete(const_cast<void*>(p)); });
    tensor.liveness = Liveness::live;
    tensors[name] = std::move(tensor);
  }
  // Other bytes for each seed.
  void fill(unsigned seed) {
    std::mt19937_64 random(seed);
    for (auto& [name, tensor] : tensors)
      for (std::uint64_t at = 0; at < tensor.storage->size; at += 8) {
        const std::uint64_t word = random();
        std::memcpy(tensor.storage->data + at, &word,
                    std::min<std::uint64_t>(8, tensor.storage->size - at));
      }
  }
  bool is_of(unsigned seed) const {
    Memories expected;
    for (const auto& [name, tensor] : tensors) expected.add(name, tensor.dtype, tensor.shape);
    expected.fill(seed);
    return std::ranges::all_of(tensors, [&](const auto& item) {
      const TensorStorage& other = *expected.tensors.at(item.first).storage;
      return std::equal(other.data, other.data + other.size, item.second.storage->data);
    });
  }
};

}  // namespace
}  // namespace perdure::test

template <>
struct perdure::Adapter<perdure::test::Memories> {
  using T = test::Memories;
  static constexpr Role role = Role::other;
  static Value state_dict(const T& x) {
    Dict dict;
    for (const auto& [name, tensor] : x.tensors) dict.set(name, tensor);
    return dict;
  }
  static Value live(const T& x) { return state_dict(x); }
  static void check(T& x, const Value& value, Problems& problems) {
    for (const auto& [name, tensor] : x.tensors)
      if (value[name].as_tensor().shape != tensor.shape) problems.push_back(name + ": other shape");
  }
  static void load_state_dict(T& x, const Value& value) {
    for (const auto& [name, tensor] : x.tensors) {
      const TensorStorage& from = *value[name].as_tensor().storage;
      if (from.data != tensor.storage->data)
        std::copy_n(from.data, from.size, tensor.storage->data);
    }
  }
};

namespace perdure::test {
namespace {

std::string numbered(const char* name, std::size_t number) {
  return std::string(name) + "." + std::to_string(number);
}

Memories a_model(bool large) {
  Memories model;
  for (std::size_t i = 0; i < kDTypeCount; ++i)
    model.add(numbered("dtype", i), static_cast<DType>(i), {7, 3});
  for (std::size_t i = 0; i < 200; ++i)
    model.add(numbered("small", i), DType::float32, {static_cast<std::int64_t>(i)});
  model.add("empty", DType::float32, {0, 5});
  model.add("scalar", DType::int64, {});
  if (large) model.add("large", DType::float32, {(4 << 18) + 5000});  // two blocks of the index
  return model;
}

// What one file has that the model has not: views, tied tensors, plain values.
Value a_mixed_state(Memories& model) {
  const Tensor& base = model.tensors.at("small.150");
  Tensor row = base, transposed = base;
  row.shape = {10}, row.storage_offset = 20;
  transposed.shape = {5, 30}, transposed.strides = {1, 5};
  Dict module(Kind::ordered_dict);
  module.set("weight", base).set("tied", base).set("row", row).set("transposed", transposed);
  const Value list = Value::list({1, "a", 2.5});
  return Value(Dict{{"model", module},
                    {"all", Adapter<Memories>::state_dict(model)},
                    {"epoch", 3},
                    {"lists", Value::list({list, list})},
                    {"bytes", Value::bytes(std::string(5000, 'b'))}});
}

// ---- the damage

struct Damaged {
  std::string bytes;
  std::string what;
};

class RandomDamage {
 public:
  explicit RandomDamage(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t limit) { return random_() % limit; }

  Damaged make(const std::string& whole) {
    switch (below(8)) {
      case 0:
        return cut(whole);
      case 1:
        return zeros(whole);
      case 2:
        return swapped(whole);
      default:
        return flipped(whole);
    }
  }

 private:
  Damaged cut(const std::string& whole) {
    const std::size_t size = below(2) == 0 ? below(whole.size()) : page_of(whole);
    return {whole.substr(0, size), "cut at " + std::to_string(size)};
  }
  Damaged zeros(std::string whole) {
    const std::size_t at = page_of(whole), size = std::min(kPage, whole.size() - at);
    return {whole.replace(at, size, size, '\0'), "zeros at " + std::to_string(at)};
  }
  Damaged swapped(std::string whole) {
    const std::size_t a = page_of(whole), b = page_of(whole);
    if (std::max(a, b) + kPage <= whole.size())
      std::swap_ranges(whole.begin() + static_cast<std::ptrdiff_t>(a),
                       whole.begin() + static_cast<std::ptrdiff_t>(a + kPage),
                       whole.begin() + static_cast<std::ptrdiff_t>(b));
    return {std::move(whole), "pages " + std::to_string(a) + " and " + std::to_string(b)};
  }
  // Every second one near the end, where what gives the tensors their meaning lies.
  Damaged flipped(std::string whole) {
    constexpr std::size_t kEnd = 64 << 10;
    const std::size_t range = below(2) == 0 ? whole.size() : std::min(whole.size(), kEnd);
    const std::size_t at = whole.size() - 1 - below(range), bit = below(8);
    whole[at] = static_cast<char>(whole[at] ^ (1 << bit));
    return {std::move(whole), "bit " + std::to_string(bit) + " of byte " + std::to_string(at)};
  }
  std::size_t page_of(const std::string& whole) {
    return below((whole.size() + kPage - 1) / kPage) * kPage;
  }

  std::mt19937_64 random_;
};

// ---- what must be seen

// A whole file, and what is known of it.
class WholeFile {
 public:
  WholeFile(std::string name, std::string bytes)
      : name_(std::move(name)), bytes_(std::move(bytes)) {
    const auto file = CheckpointFile::open(source_of(bytes_));
    file.read_all(file.value());
    value_ = file.value();
    records_ = file.records();
    engine::for_each_tensor(value_, [&](const KeyPath& path, const Tensor& tensor) {
      if (tensor.storage->record < 0) return;
      const std::string record = "data/" + std::to_string(tensor.storage->record);
      tensors_.try_emplace(record, format_path(path));
    });
  }

  const std::string& name() const { return name_; }
  const std::string& bytes() const { return bytes_; }

  void check(const std::string& damaged) const {
    const auto touched = touched_tensors(damaged);
    const VerifyReport report = verify(source_of(damaged));
    EXPECT_EQ(report.state == VerifyReport::State::good, report.findings.empty());
    try {
      EXPECT_EQ(Comparison::difference(value_, load_bytes(damaged)), "") << "loaded wrong";
      EXPECT_TRUE(touched.empty()) << "damage in a tensor that load does not see";
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_EQ(error.code(), ErrorCode::corrupt) << what;
      EXPECT_EQ(report.state, VerifyReport::State::damaged) << what;
      EXPECT_TRUE(touched.empty() || std::ranges::any_of(touched,
                                                         [&](const std::string& record) {
                                                           return what.find(tensors_.at(record)) !=
                                                                  what.npos;
                                                         }))
          << "no tensor is named: " << what;
    }
    for (const std::string& record : touched)
      EXPECT_TRUE(std::ranges::any_of(report.findings,
                                      [&](const Finding& finding) {
                                        return finding.record == record &&
                                               finding.tensor.starts_with(tensors_.at(record));
                                      }))
          << record << ", " << tensors_.at(record) << ", is not found";
  }

 private:
  // The records with tensors that differ, where nothing else does.
  std::set<std::string> touched_tensors(const std::string& damaged) const {
    std::set<std::string> touched;
    if (damaged.size() != bytes_.size()) return {};
    for (std::size_t at = 0; at < damaged.size(); ++at) {
      const auto pair =
          std::mismatch(damaged.begin() + static_cast<std::ptrdiff_t>(at), damaged.end(),
                        bytes_.begin() + static_cast<std::ptrdiff_t>(at));
      at = static_cast<std::size_t>(pair.first - damaged.begin());
      if (at == damaged.size()) break;
      const auto record = std::ranges::find_if(records_, [&](const CheckpointFile::Record& item) {
        return at >= item.offset && at < item.offset + item.size;
      });
      if (record == records_.end() || !tensors_.contains(record->name)) return {};
      touched.insert(record->name);
    }
    return touched;
  }

  std::string name_, bytes_;
  Value value_;
  std::vector<CheckpointFile::Record> records_;
  std::map<std::string, std::string> tensors_;  // record -> the first that looks into it
};

// Files of torch.save: the one that the format tests know by heart, and the seeds of the fuzzers.
std::vector<WholeFile> files_of_torch() {
  std::vector<WholeFile> files;
  files.emplace_back("torch", kTorchFile);
  for (const auto& entry : std::filesystem::directory_iterator(PERDURE_SEEDS)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("torch-") || name == "torch-opaque.pt" || name == "torch-unchecked.pt")
      continue;
    std::ifstream in(entry.path(), std::ios::binary);
    files.emplace_back(name, std::string(std::istreambuf_iterator<char>(in), {}));
  }
  return files;
}

class SilentDamageTest : public testing::Test {
 protected:
  // Calls `check` with a seed and a source of damage, as often as asked for.
  template <class Check>
  static void for_each_damage(std::uint64_t part, Check&& check) {
    const std::uint64_t first = number_from("PERDURE_SEED", 1);
    const std::uint64_t count = number_from("PERDURE_DAMAGES", 2000);
    for (std::uint64_t seed = first; seed < first + (count + part - 1) / part; ++seed) {
      RandomDamage random(seed);
      check(random);
      if (HasFailure()) {
        ADD_FAILURE() << "again: PERDURE_SEED=" << seed << " PERDURE_DAMAGES=1";
        return;
      }
    }
  }
};

TEST_F(SilentDamageTest, IsSeenInFilesOfManyKinds) {
  Memories model = a_model(false);
  model.fill(1);
  std::vector<WholeFile> files = files_of_torch();
  ASSERT_GT(files.size(), 4U);
  for (int i = 0; i < 4; ++i) files.emplace_back("perdure", file_of(a_mixed_state(model)));
  for_each_damage(2, [&](RandomDamage& random) {
    const WholeFile& file = files[random.below(files.size())];
    const Damaged damaged = random.make(file.bytes());
    SCOPED_TRACE(file.name() + ", " + damaged.what);
    file.check(damaged.bytes);
  });
}

TEST_F(SilentDamageTest, IsSeenInALargeTensor) {
  Memories model = a_model(true);
  model.fill(1);
  const WholeFile file("perdure, large", file_of(a_mixed_state(model)));
  for_each_damage(8, [&](RandomDamage& random) {
    const Damaged damaged = random.make(file.bytes());
    SCOPED_TRACE(damaged.what);
    file.check(damaged.bytes);
  });
}

// ---- restore, straight into the live tensors

class DamagedRun : public SilentDamageTest {
 protected:
  // The bytes of a checkpoint of `model` as it is.
  static std::string checkpoint(Memories& model, std::int64_t step) {
    TrainingState state;
    state.add("model", model);
    state.step = step;
    return file_of(state.state_dict(), info_of_step(step));
  }
  void put(std::uint64_t step, const std::string& bytes) {
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    store->files[engine::format({static_cast<std::int64_t>(step), step})] =
        std::make_shared<const std::vector<std::byte>>(begin, begin + bytes.size());
  }
  // Restores into `model`, and says which step it has then; -1 where it is a mixture.
  std::int64_t restored_step(Memories& model) {
    warnings.clear();
    model.fill(99);
    ManagerOptions options;
    options.warning = [this](const std::string& text) { warnings.push_back(text); };
    CheckpointManager manager(std::make_shared<storage::MemoryStorage>(store), options);
    TrainingState state;
    state.add("model", model);
    const auto checkpoint = manager.restore(state);
    EXPECT_TRUE(checkpoint && !state.broken());
    return model.is_of(static_cast<unsigned>(state.step)) ? state.step : -1;
  }
  bool told_of_damage() const {
    return std::ranges::any_of(warnings, [](const std::string& text) {
      return text.find("is damaged and was set aside") != text.npos;
    });
  }

  std::shared_ptr<storage::MemoryStorage::Store> store =
      std::make_shared<storage::MemoryStorage::Store>();
  std::vector<std::string> warnings;
};

TEST_F(DamagedRun, GoesOnFromTheOlderCheckpointAndSaysSo) {
  Memories model = a_model(true);
  model.fill(1);
  const std::string older = checkpoint(model, 1);
  model.fill(2);
  const std::string newest = checkpoint(model, 2);
  int fell_back = 0;
  for_each_damage(8, [&](RandomDamage& random) {
    const Damaged damaged = random.make(newest);
    SCOPED_TRACE(damaged.what);
    store->files.clear();
    put(1, older);
    put(2, damaged.bytes);
    const std::int64_t step = restored_step(model);
    EXPECT_EQ(step, told_of_damage() ? 1 : 2);
    EXPECT_EQ(store->files.contains(engine::format({2, 2})), !told_of_damage());
    fell_back += told_of_damage() ? 1 : 0;
  });
  EXPECT_GT(fell_back, 0);
}

// The test can fail: what no checksum covers is found by nobody.
TEST_F(DamagedRun, WouldFindOutWhatLoadsWrong) {
  Memories model = a_model(false);
  model.fill(3);
  put(2, checkpoint(model, 2));
  EXPECT_EQ(restored_step(model), -1);
}

}  // namespace
}  // namespace perdure::test
