// Every allocation of a run fails once, and so does every start of a thread: std::bad_alloc or a
// typed error comes out, the process lives, and nothing that was acknowledged is lost.
//
// A program of its own, for it replaces operator new and pthread_create. PERDURE_ALLOCATIONS is the
// stride from one that fails to the next: 1 for all of them.
#include <dlfcn.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <new>
#include <perdure/perdure.hpp>

#include "engine/arena.hpp"
#include "engine/run_fixture.hpp"
#include "engine/save_job.hpp"
#include "format/encoder.hpp"
#include "storage/crash_explorer.hpp"
#include "storage/memory_storage.hpp"

namespace {

// Calls until the one that fails; 0: none does.
struct Failing {
  std::atomic<std::int64_t> left = 0;
  bool now() { return left.load(std::memory_order_relaxed) > 0 && left.fetch_sub(1) == 1; }
};
Failing failing_allocation, failing_thread;

void* allocate(std::size_t size, std::size_t alignment) noexcept {
  if (failing_allocation.now()) return nullptr;
  const std::size_t rounded =
      (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment;
  return alignment <= alignof(std::max_align_t) ? std::malloc(rounded)
                                                : std::aligned_alloc(alignment, rounded);
}
void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* const memory = allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
constexpr std::size_t kPlain = alignof(std::max_align_t);

}  // namespace

void* operator new(std::size_t size) { return allocate_or_throw(size, kPlain); }
void* operator new[](std::size_t size) { return allocate_or_throw(size, kPlain); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size, kPlain);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size, kPlain);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#define PERDURE_HAS_SANITIZER 0
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#undef PERDURE_HAS_SANITIZER
#define PERDURE_HAS_SANITIZER 1
#endif
#endif

#if !PERDURE_HAS_SANITIZER  // which has one of its own
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*start)(void*), void* argument) noexcept {
  static const auto next =
      reinterpret_cast<decltype(&pthread_create)>(::dlsym(RTLD_NEXT, "pthread_create"));
  return failing_thread.now() ? EAGAIN : next(thread, attributes, start, argument);
}
#endif

namespace perdure::test {
namespace {

// Fails the n-th for n = 1 until none is left that could fail. `work` and `check` are given n.
template <class Check>
std::int64_t for_every(Failing& failing, std::int64_t stride, const std::function<void()>& work,
                       Check&& check) {
  for (std::int64_t n = 1;; n += stride) {
    SCOPED_TRACE(testing::Message() << "number " << n);
    failing.left = n;
    try {
      work();
    } catch (const Error&) {
    } catch (const std::bad_alloc&) {
    } catch (const std::system_error&) {
    }
    const bool failed = failing.left.exchange(0) <= 0;
    check();
    if (!failed || testing::Test::HasFailure()) return n;
  }
}

std::int64_t stride(std::int64_t otherwise) {
  return static_cast<std::int64_t>(
      number_from_environment("PERDURE_ALLOCATIONS", static_cast<std::uint64_t>(otherwise)));
}

// What they are of, so that a leak says where it comes from.
std::multiset<std::string> open_descriptors() {
  std::multiset<std::string> targets;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    targets.insert(std::filesystem::read_symlink(entry, gone));
  }
  return targets;
}

class AllocationTest : public RunFixture {
 protected:
  static ManagerOptions quiet(Capture capture) {
    return {.keep_last = 2,
            .keep_best = {{"loss", Mode::min, 1}},
            .capture = capture,
            .warning = [](const std::string&) {},
            .note = [](const std::string&) {}};
  }

  // Opens, restores, saves three times, pins and closes.
  void live(Capture capture) {
    CheckpointManager manager(path, quiet(capture));
    std::int64_t step = std::max<std::int64_t>(restore(manager), 0);
    for (int i = 0; i < 3; ++i) {
      manager.fence();
      ++step;
      SaveHandle handle = manager.save(state_of_step(step), info_of_step(step, {{"loss", 1.0}}));
      while (!handle.done()) std::this_thread::yield();
      if (handle.checkpoint()) acknowledged = step;
    }
    manager.pin(step, "pinned");
    manager.unpin(step);
    manager.close();
  }

  // Without any fault: what was acknowledged is there, whole, and the next save works.
  void check() {
    std::vector<std::string> told;
    {
      CheckpointManager manager(path, {.keep_last = 2, .warning = [&](const std::string& text) {
                                         told.push_back(text);
                                       }});
      const std::int64_t found = restore(manager), next = std::max<std::int64_t>(found, 0) + 1;
      EXPECT_GE(found, acknowledged);
      for (const std::int64_t step : manager.all_steps()) manager.unpin(step);  // one may be left
      manager.save(state_of_step(next), info_of_step(next)).wait();
      acknowledged = next;
      manager.close();
    }
    EXPECT_TRUE(told.empty()) << told.front();
    for (const std::string& name : TemporaryDirectory::names_in(path))
      EXPECT_FALSE(name.ends_with(".tmp")) << name;
    EXPECT_EQ(open_descriptors(), descriptors);
  }

  std::int64_t acknowledged = -2;
  std::multiset<std::string> descriptors = open_descriptors();
};

TEST_F(AllocationTest, EveryAllocationOfARunFailsOnce) {
  check();
  for (const Capture capture : {Capture::eager, Capture::overlapped}) {
    const std::int64_t tried =
        for_every(failing_allocation, stride(29), [&] { live(capture); }, [&] { check(); });
    EXPECT_GT(tried, 300);
  }
}

// Files of one's own names, each of which makes the one before superfluous.
TEST_F(AllocationTest, EveryAllocationOfAnAsyncSaverFailsOnce) {
  std::filesystem::create_directories(path);
  acknowledged = 0;
  const auto file = [&](std::int64_t step) { return path / fmt::format("{}.pt", step); };
  const auto live = [&] {
    AsyncSaver saver({.warning = [](const std::string&) {}});
    for (std::int64_t step = acknowledged + 1, last = step + 2; step <= last; ++step) {
      SaveHandle handle = saver.save(file(step), state_of_step(step));
      saver.remove(file(step - 1));
      while (!handle.done()) std::this_thread::yield();
      if (handle.error() == nullptr) acknowledged = step;  // which needs no memory
    }
    saver.close();
  };
  const auto check = [&] {
    EXPECT_EQ(step_of(load(file(acknowledged))), acknowledged);
    for (const std::string& name : TemporaryDirectory::names_in(path))
      EXPECT_FALSE(name.ends_with(".tmp")) << name;
    EXPECT_EQ(open_descriptors(), descriptors);
  };
  live();
  for (Failing* failing : {&failing_allocation, &failing_thread}) {
    if (failing == &failing_thread && PERDURE_HAS_SANITIZER) continue;
    const std::int64_t step = failing == &failing_thread ? 1 : stride(7);
    EXPECT_GT(for_every(*failing, step, live, check), 1);
  }
}

TEST_F(AllocationTest, EveryStartOfAThreadFailsOnce) {
  if (PERDURE_HAS_SANITIZER) GTEST_SKIP() << "a sanitizer starts the threads";
  check();
  EXPECT_GE(for_every(failing_thread, 1, [&] { live(Capture::eager); }, [&] { check(); }), 2);
}

// Where the threads that help with a large state are not to be had, the caller copies all of it:
// the training must not go on before.
TEST_F(AllocationTest, ACaptureThatGetsNoThreadIsComplete) {
  if (PERDURE_HAS_SANITIZER) GTEST_SKIP() << "a sanitizer starts the threads";
  std::vector<std::uint8_t> numbers(std::size_t{70} << 20, 1);
  const Dict state{{"numbers", Tensor::over(numbers.data(), DType::uint8,
                                            {static_cast<std::int64_t>(numbers.size())})}};
  auto plan = std::make_unique<const format::Encoder>(Value(state), info_of_step(1));
  engine::Arena arena(0, {});
  arena.reserve(plan->file_size());
  engine::SaveJob job(Value(state), info_of_step(1), std::move(plan), arena, Capture::eager, {},
                      engine::SaveJob::Clock::now());
  failing_thread.left = 1;
  job.capture(3);
  EXPECT_EQ(failing_thread.left, 0);
  std::ranges::fill(numbers, std::uint8_t{2});  // the next step
  storage::MemoryStorage storage;
  job.write(storage, "a.pt", storage::IfExists::fail);
  const auto file = CheckpointFile::open(storage.open("a.pt"));
  file.read_all(file.value());
  const Tensor& read = file.value()["numbers"].as_tensor();
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(read.storage->data);
  EXPECT_EQ(std::count(bytes, bytes + read.numel(), 1), read.numel());
}

TEST_F(AllocationTest, EveryAllocationOfAOneFileSaveAndLoadFailsOnce) {
  perdure::save(directory / "a.pt", state_of_step(1));
  const auto work = [&] {
    perdure::save(directory / "a.pt", state_of_step(1));
    EXPECT_EQ(step_of(load(directory / "a.pt")), 1);
  };
  const auto tried = for_every(failing_allocation, stride(3), work, [&] {
    EXPECT_EQ(step_of(load(directory / "a.pt")), 1);
    EXPECT_EQ(directory.names(), std::set<std::string>{"a.pt"});
    EXPECT_EQ(open_descriptors(), descriptors);
  });
  EXPECT_GT(tried, 100);
}

TEST_F(AllocationTest, EveryAllocationOfALookAtARunFailsOnce) {
  check();
  const auto work = [&] {
    EXPECT_EQ(list_checkpoints(path).size(), 1U);
    EXPECT_EQ(read_history(path).size(), 1U);
    EXPECT_EQ(retention_plan(path, {}).size(), 1U);
    EXPECT_EQ(verify(list_checkpoints(path).front().checkpoint.path).state,
              VerifyReport::State::good);
  };
  for_every(failing_allocation, stride(3), work,
            [&] { EXPECT_EQ(open_descriptors(), descriptors); });
}

}  // namespace
}  // namespace perdure::test
