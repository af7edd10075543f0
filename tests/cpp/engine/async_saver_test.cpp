// Files of one's own names, saved behind the training.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <perdure/perdure.hpp>

#include "engine/owned_tensor.hpp"
#include "expect_error.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;

// So large that a save of it is over the limit of FailingWrites.
constexpr std::size_t kNumbers = std::size_t{1} << 20;

class AsyncSaverTest : public ::testing::Test {
 protected:
  static Value state(float number, std::size_t count = kNumbers) {
    return Dict{{"epoch", 3}, {"weight", owned(std::vector<float>(count, number))}};
  }
  static float first(const fs::path& file) {
    const Value loaded = load(file);
    return reinterpret_cast<const float*>(loaded["weight"].as_tensor().storage->data)[0];
  }
  AsyncSaver saver() {
    return AsyncSaver({.warning = [this](const std::string& text) { told.push_back(text); }});
  }

  TemporaryDirectory directory;
  fs::path path = directory.path();
  std::vector<std::string> told;
};

// As long as it lives, this process writes no file of more than 1 MiB.
class FailingWrites {
 public:
  FailingWrites() {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{1 << 20, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FailingWrites() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(AsyncSaverTest, SavesWhatSaveWould) {
  AsyncSaver saver = this->saver();
  const SaveHandle handle = saver.save(path / "a.pt", state(0.5));
  handle.wait();
  EXPECT_EQ(first(path / "a.pt"), 0.5F);
  EXPECT_EQ(load(path / "a.pt")["epoch"].as_int(), 3);
  EXPECT_EQ(verify(path / "a.pt").state, VerifyReport::State::good);
  const Checkpoint saved = handle.checkpoint().value();
  EXPECT_EQ(saved.path, path / "a.pt");
  EXPECT_EQ(saved.size, fs::file_size(path / "a.pt"));
  EXPECT_EQ(handle.stats().bytes, saved.size);
  EXPECT_GT(handle.stats().durable.count(), 0);
  saver.wait();
  EXPECT_TRUE(saver.idle());
  EXPECT_EQ(saver.progress(), 1);
  EXPECT_TRUE(told.empty());
}

TEST_F(AsyncSaverTest, WhatChangesAfterTheCallIsNotSaved) {
  AsyncSaver saver = this->saver();
  for (const std::size_t count : {kNumbers, 16 * kNumbers}) {
    std::vector<float> numbers(count, 1);
    const Tensor tensor =
        Tensor::over(numbers.data(), DType::float32, {static_cast<std::int64_t>(count)});
    saver.save(path / "a.pt", Dict{{"weight", tensor}});
    std::fill(numbers.begin(), numbers.end(), 2.0F);
    saver.wait();
    const Value loaded = load(path / "a.pt");
    const auto* const weight =
        reinterpret_cast<const float*>(loaded["weight"].as_tensor().storage->data);
    EXPECT_EQ(std::count(weight, weight + count, 1.0F), static_cast<std::ptrdiff_t>(count));
  }
}

TEST_F(AsyncSaverTest, AStateLargerThanItsMemoryStreamsThrough) {
  AsyncSaver saver({.staging_bytes = std::uint64_t{16} << 20});
  saver.save(path / "a.pt", state(0.5, 16 * kNumbers));
  saver.save(path / "b.pt", state(0.25, 12 * kNumbers));
  saver.close();
  EXPECT_EQ(first(path / "a.pt"), 0.5F);
  EXPECT_EQ(first(path / "b.pt"), 0.25F);
  EXPECT_THROW(AsyncSaver({.staging_bytes = 1}), Error);
}

TEST_F(AsyncSaverTest, OverwritesAndFollowsLinks) {
  AsyncSaver saver = this->saver();
  fs::create_symlink("a.pt", path / "last.pt");
  saver.save(path / "a.pt", state(1));
  saver.save(path / "last.pt", state(2));
  saver.wait();
  EXPECT_TRUE(fs::is_symlink(path / "last.pt"));
  EXPECT_EQ(first(path / "a.pt"), 2.0F);
}

TEST_F(AsyncSaverTest, RemovesBehindTheSaveThatIsInFlight) {
  AsyncSaver saver = this->saver();
  fs::create_directories(path / "old/inside");
  std::ofstream(path / "old/inside/file") << "x";
  saver.save(path / "a.pt", state(1)).wait();
  saver.save(path / "b.pt", state(2, 16 * kNumbers));
  saver.remove(path / "a.pt");
  saver.remove(path / "old");
  saver.remove(path / "was-never-there");
  saver.wait();
  EXPECT_FALSE(fs::exists(path / "a.pt"));
  EXPECT_FALSE(fs::exists(path / "old"));
  EXPECT_EQ(first(path / "b.pt"), 2.0F);
  saver.remove(path / "b.pt");  // nothing is in flight
  EXPECT_FALSE(fs::exists(path / "b.pt"));
  EXPECT_TRUE(told.empty());
  for (const char* name : {"", ".", "..", "old/", "/"})
    EXPECT_THROW(saver.remove(name), Error) << name;
}

TEST_F(AsyncSaverTest, WhatAFailedSaveWasToReplaceIsKept) {
  AsyncSaver saver = this->saver();
  saver.save(path / "a.pt", state(1));
  saver.wait();
  {
    const FailingWrites fail;
    const SaveHandle handle = saver.save(path / "b.pt", state(2));
    saver.remove(path / "a.pt");
    EXPECT_THROW(handle.wait(), Error);
    saver.wait();                 // it was seen
    saver.remove(path / "a.pt");  // and has failed all the same
  }
  EXPECT_EQ(first(path / "a.pt"), 1.0F);
  EXPECT_FALSE(fs::exists(path / "b.pt"));
  ASSERT_EQ(told.size(), 2U);
  for (const std::string& text : told)
    EXPECT_NE(text.find("a.pt' is kept"), std::string::npos) << text;
  saver.save(path / "b.pt", state(2));
  saver.remove(path / "a.pt");
  saver.wait();
  EXPECT_EQ(first(path / "b.pt"), 2.0F);
  EXPECT_FALSE(fs::exists(path / "a.pt"));
}

TEST_F(AsyncSaverTest, AnErrorThatNobodyHasSeenIsThrownOnce) {
  AsyncSaver saver = this->saver();
  const FailingWrites fail;
  saver.save(path / "a.pt", state(1));
  try {
    saver.wait();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("a.pt"), std::string::npos) << error.what();
  }
  saver.wait();
  saver.save(path / "a.pt", state(1));
  EXPECT_THROW(saver.close(), Error);
  saver.close();
  EXPECT_THROW(saver.save(path / "a.pt", state(1)), Error);
  EXPECT_THROW(saver.remove(path / "a.pt"), Error);
  EXPECT_THROW(saver.wait(), Error);
}

TEST_F(AsyncSaverTest, WhoForgetsItIsTold) {
  {
    AsyncSaver saver = this->saver();
    const FailingWrites fail;
    saver.save(path / "a.pt", state(1));
    saver.idle(std::chrono::seconds(60));
  }
  ASSERT_EQ(told.size(), 1U);
  EXPECT_NE(told[0].find("a.pt"), std::string::npos) << told[0];
}

TEST_F(AsyncSaverTest, SaysWhatIsWrong) {
  AsyncSaver saver = this->saver();
  EXPECT_ERROR(not_found, "there", saver.save(path / "not" / "there" / "a.pt", state(1)));
  EXPECT_ERROR(invalid, "['layer']",
               saver.save(path / "a.pt", Dict{{"layer", Value::opaque({"a", "B", {}, {}})}}));
  saver.wait();
  EXPECT_ERROR(io, "directory", saver.save(path, state(1)).wait());
}

TEST_F(AsyncSaverTest, AForkedChildCannotUseIt) {
  AsyncSaver saver = this->saver();
  saver.save(path / "a.pt", state(1));
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      saver.save(path / "b.pt", state(1));
    } catch (const Error& error) {
      ::_exit(error.code() == ErrorCode::invalid ? 0 : 2);
    }
    ::_exit(1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  saver.wait();
  EXPECT_EQ(first(path / "a.pt"), 1.0F);
}

}  // namespace
}  // namespace perdure::test
