// The manager of several ranks: each a thread with a manager of its own, over one directory.
#include <atomic>
#include <csignal>
#include <mutex>
#include <perdure/checkpoint_manager.hpp>

#include "engine/checkpoint_name.hpp"
#include "engine/rank_program.hpp"
#include "engine/rank_threads.hpp"
#include "storage/faulty_system.hpp"
#include "storage/local_storage.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;

class RankManagerTest : public testing::Test {
 protected:
  ManagerOptions options(std::shared_ptr<Ranks> ranks) {
    ManagerOptions options;
    options.ranks = std::move(ranks);
    options.rank_timeout = std::chrono::seconds(60);
    options.warning = [this](const std::string& text) {
      const std::lock_guard lock(mutex);
      warnings.push_back(text);
    };
    options.note = [](const std::string&) {};
    return options;
  }

  // Each of so many ranks makes a program and a manager, and does something with them.
  using Life = std::function<void(RankProgram&, CheckpointManager&, std::size_t rank)>;
  using With = std::function<void(ManagerOptions&)>;
  std::vector<std::exception_ptr> errors_of(std::size_t count, const Life& life,
                                            const With& with = {}) {
    return errors_of_ranks(count, [&](const auto& ranks) {
      ManagerOptions own = options(count == 1 ? nullptr : ranks);
      if (with) with(own);
      RankProgram program(ranks->rank(), count);
      CheckpointManager manager(path, std::move(own));
      life(program, manager, ranks->rank());
    });
  }
  void live(std::size_t count, const Life& life, const With& with = {}) {
    for (const auto& error : errors_of(count, life, with)) EXPECT_EQ(text_of(error), "");
  }
  void save_steps(std::size_t count, std::vector<std::int64_t> steps, const With& with = {}) {
    live(
        count,
        [&](RankProgram& program, CheckpointManager& manager, std::size_t) {
          for (const std::int64_t step : steps) {
            program.go_to(step);
            manager.save(program.state).wait();
          }
          manager.close();
        },
        with);
  }
  void expect_restored(std::size_t count, std::int64_t step, std::size_t saved,
                       const RestoreOptions& how = {}) {
    live(count, [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
      const auto checkpoint = manager.restore(program.state, how);
      ASSERT_TRUE(checkpoint);
      EXPECT_EQ(checkpoint->step(), step);
      EXPECT_EQ(program.differs_from(step, saved), "") << "rank " << rank << " of " << count;
    });
  }
  fs::path folder(std::int64_t step, std::uint64_t generation) const {
    return path / engine::format({step, generation, true});
  }
  std::vector<std::string> checkpoints() const {
    std::vector<std::string> names;
    for (const std::string& name : TemporaryDirectory::names_in(path))
      if (name.starts_with("step-")) names.push_back(name);
    return names;
  }
  void expect_no_debris() const {
    for (const std::string& name : TemporaryDirectory::names_in(path))
      EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
  }
  static void damage(const fs::path& file, std::size_t at) {
    std::string content = TemporaryDirectory::content(file);
    content.at(at) = static_cast<char>(content.at(at) ^ 0x20);
    TemporaryDirectory::write(file, content);
  }
  // In the bytes of a tensor.
  static void damage_tensor(const fs::path& file) {
    const std::string content = TemporaryDirectory::content(file);
    float number = 4000 + RankProgram::kColumns * 2;  // the first of row 2, at step 4
    const std::string bytes(reinterpret_cast<const char*>(&number), sizeof number);
    const std::size_t at = content.find(bytes);
    ASSERT_NE(at, std::string::npos);
    damage(file, at);
  }

  TemporaryDirectory directory;
  fs::path path = directory / "runs/gpt";
  std::mutex mutex;
  std::vector<std::string> warnings;
};

constexpr std::size_t kAll[] = {1, 2, 3, 4};

TEST_F(RankManagerTest, WhatSomeHaveSavedAnyNumberRestores) {
  for (const std::size_t saved : kAll) {
    path = directory / std::to_string(saved);
    save_steps(saved, {3, 4});
    for (const std::size_t restored : kAll) expect_restored(restored, 4, saved);
    expect_restored(2, 3, saved, {.step = 3});
    expect_no_debris();
  }
  // A path of another run.
  path = directory / "other";
  for (const std::size_t restored : {1, 2, 3})
    expect_restored(restored, 4, 4, {.path = directory / "4/step-0000000004-g00000002.dcp"});
  EXPECT_TRUE(warnings.empty()) << warnings.front();
}

TEST_F(RankManagerTest, MoreRanksThanRows) {
  save_steps(9, {4});
  expect_restored(9, 4, 9);
  expect_restored(2, 4, 9);
  save_steps(1, {5});
  expect_restored(9, 5, 1);
}

TEST_F(RankManagerTest, ADirectoryIsWholeAndSaysWhatItIs) {
  save_steps(3, {4});
  EXPECT_EQ(TemporaryDirectory::names_in(folder(4, 1)),
            (std::set<std::string>{".metadata", "__0_0.distcp", "__1_0.distcp", "__2_0.distcp",
                                   "perdure.json"}));
  const CheckpointFile file = CheckpointFile::open(folder(4, 1));
  EXPECT_EQ(file.ranks(), 3U);
  ASSERT_TRUE(file.info());
  EXPECT_EQ(file.info()->step, 4);
  EXPECT_EQ(file.info()->generation, 1U);
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder(4, 1))) bytes += entry.file_size();
  EXPECT_EQ(file.size(), bytes);
  EXPECT_EQ(verify(folder(4, 1)).state, VerifyReport::State::good);
  EXPECT_EQ(file.value()["model"]["weight"].as_tensor().shape,
            (std::vector<std::int64_t>{RankProgram::kRows, RankProgram::kColumns}));
}

TEST_F(RankManagerTest, ThereIsNoCheckpointYet) {
  live(3, [](RankProgram& program, CheckpointManager& manager, std::size_t) {
    EXPECT_FALSE(manager.restore(program.state));
    EXPECT_FALSE(manager.latest_step());
    EXPECT_ERROR(not_found, "", manager.restore(program.state, {.step = 3}));
    EXPECT_FALSE(manager.restore(program.state));
  });
}

TEST_F(RankManagerTest, GenerationsAndParentsGoOn) {
  save_steps(2, {1, 2});
  live(3, [](RankProgram& program, CheckpointManager& manager, std::size_t) {
    EXPECT_EQ(manager.restore(program.state)->generation(), 2U);
    program.go_to(3);
    const SaveHandle handle = manager.save(program.state, {{"loss", 0.5}});
    handle.wait();
    EXPECT_EQ(handle.checkpoint()->generation(), 3U);
    EXPECT_EQ(handle.checkpoint()->info.parent, 2U);
    EXPECT_EQ(manager.latest_step(), 3);
  });
  EXPECT_EQ(CheckpointFile::open(folder(3, 3)).info()->metrics.at("loss"), 0.5);
}

// As a loop would: the fence comes before the step that changes everything.
TEST_F(RankManagerTest, OverlappedCapture) {
  const auto overlapped = [](ManagerOptions& own) { own.capture = Capture::overlapped; };
  live(
      3,
      [](RankProgram& program, CheckpointManager& manager, std::size_t) {
        for (std::int64_t step = 1; step <= 5; ++step) {
          manager.fence();
          program.go_to(step);
          manager.save(program.state);
        }
        manager.fence();
        program.go_to(6);  // is not saved
        manager.close();
      },
      overlapped);
  expect_restored(2, 5, 3);
  // What changes in between fails the save, on all of them.
  const auto errors = errors_of(
      2,
      [](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
        program.go_to(7);
        const SaveHandle handle = manager.save(program.state);
        if (rank == 1) {
          ++program.versions[0];
          program.weight()[0] = 0;
        }
        manager.fence();
        handle.wait();
      },
      overlapped);
  for (const auto& error : errors) {
    ASSERT_TRUE(error);
    EXPECT_ERROR(invalid, "changed before they were copied", std::rethrow_exception(error));
  }
  expect_restored(2, 5, 3);
}

// What one cannot save is an error on all, and costs none of them the next save.
TEST_F(RankManagerTest, AStateThatOneRankRefuses) {
  for (const std::size_t refusing : {0, 1, 2}) {
    path = directory / std::to_string(refusing);
    live(3, [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
      program.go_to(1);
      manager.save(program.state).wait();
      program.go_to(2);
      if (rank == refusing) {
        program.more = Value::opaque({"__main__", "Config", {}, {}});
        EXPECT_ERROR(invalid, "'Config'", manager.save(program.state));
        program.more = Value();
      } else {
        EXPECT_ERROR(invalid, "'Config'", manager.save(program.state).wait());
      }
      program.go_to(3);
      const SaveHandle handle = manager.save(program.state);
      handle.wait();
      EXPECT_EQ(handle.checkpoint()->generation(), 3U);
    });
    EXPECT_EQ(checkpoints().size(), 2U);
    expect_restored(3, 3, 3);
    expect_no_debris();
  }
}

TEST_F(RankManagerTest, TensorsThatOnlyOneRankHasAreRefused) {
  std::vector<float> data(4);
  live(2, [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
    program.go_to(1);
    if (rank == 1) {
      Tensor tensor = Tensor::over(data.data(), DType::float32, {4});
      tensor.liveness = Liveness::stepped;
      program.more = Value::list({tensor, tensor, tensor, tensor, tensor, tensor});
    }
    EXPECT_ERROR(invalid, "rank 1 has the tensor model.more.", manager.save(program.state).wait());
  });
  EXPECT_TRUE(checkpoints().empty());
}

// What rank 0 knows of the others after a save that failed is not what they have told before it.
TEST_F(RankManagerTest, AStructureThatComesAgainAfterAFailedSave) {
  std::vector<float> data(1000);
  live(2, [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
    const auto save = [&](std::int64_t step) {
      program.go_to(step);
      return manager.save(program.state);
    };
    save(1).wait();
    // More in front of what it has, on both, and rank 0 has yet another tensor: nobody writes that.
    Tensor tensor = Tensor::over(data.data(), DType::float32, {1000});
    tensor.liveness = Liveness::stepped;
    Value::Items items(9, Value(tensor));
    tensor.shape = {999};
    if (rank == 0) items.assign(9, Value(tensor));
    program.more = Value::list(items);
    EXPECT_ERROR(invalid, "model.more", save(2).wait());
    program.more = Value();
    save(3).wait();
  });
  expect_restored(2, 3, 2);
  EXPECT_EQ(verify(folder(3, 3)).state, VerifyReport::State::good);
  EXPECT_TRUE(warnings.size() == 2) << warnings.size();  // of the failed save
}

TEST_F(RankManagerTest, ARankThatNeverComes) {
  save_steps(2, {1});
  warnings.clear();
  for (const std::size_t missing : {0, 1}) {
    const auto errors = errors_of(
        2,
        [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
          if (rank == missing) return;
          program.go_to(2);
          manager.save(program.state).wait();
        },
        [](ManagerOptions& own) { own.rank_timeout = std::chrono::milliseconds(300); });
    EXPECT_FALSE(errors[missing]);
    ASSERT_TRUE(errors[1 - missing]);
    EXPECT_ERROR(io, "rank " + std::to_string(missing) + " of 2",
                 std::rethrow_exception(errors[1 - missing]));
  }
  EXPECT_EQ(warnings.size(), 2U);
  expect_restored(2, 1, 2);
  EXPECT_EQ(checkpoints().size(), 1U);
  expect_no_debris();
}

TEST_F(RankManagerTest, ARankThatDoesNotComeToARestore) {
  save_steps(2, {1});
  for (const std::size_t missing : {0, 1}) {
    const auto errors = errors_of(
        2,
        [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
          if (rank == missing) return;
          EXPECT_ERROR(io, "rank " + std::to_string(missing), manager.restore(program.state));
          // What rank 0 has restored is not what the others have.
          if (rank == 0) EXPECT_ERROR(invalid, "", manager.save(program.state));
        },
        [](ManagerOptions& own) { own.rank_timeout = std::chrono::milliseconds(300); });
    for (const auto& error : errors) EXPECT_EQ(text_of(error), "");
  }
  expect_restored(2, 1, 2);
}

// The disk of one fails; what was there stays, and the next save works.
TEST_F(RankManagerTest, ADiskThatFailsOneRankFailsTheSaveOfAll) {
  for (const std::size_t failing : {0, 1, 2})
    for (const auto& [call, error, code] : {std::tuple{Call::fallocate, ENOSPC, ErrorCode::full},
                                            {Call::pwrite, EIO, ErrorCode::io},
                                            {Call::fsync, EIO, ErrorCode::io},
                                            {Call::openat, EACCES, ErrorCode::io},
                                            {Call::renameat2, EIO, ErrorCode::io}}) {
      SCOPED_TRACE(std::to_string(failing) + ": call " + std::to_string(static_cast<int>(call)));
      FaultySystem systems[3];
      on_ranks(3, [&](const auto& ranks) {
        const std::size_t rank = ranks->rank();
        RankProgram program(rank, 3);
        CheckpointManager manager(storage::LocalStorage::create_run(systems[rank], path),
                                  options(ranks));
        program.go_to(1);
        manager.save(program.state).wait();
        manager.wait();  // until it is pruned
        if (rank == failing) systems[rank].fail(call, 1, error);
        program.go_to(2);
        const SaveHandle handle = manager.save(program.state);
        const Error told = error_of([&] { handle.wait(); });
        EXPECT_EQ(told.code(), code) << told.what();
        EXPECT_EQ(told.errno_value(), error) << told.what();
        if (rank != failing && failing != 0)
          EXPECT_NE(std::string(told.what()).find("rank " + std::to_string(failing)),
                    std::string::npos)
              << told.what();
        EXPECT_EQ(manager.latest_step(), 1);
        program.go_to(3);
        manager.save(program.state).wait();
        manager.close();
      });
      EXPECT_TRUE(systems[failing].fired());
      for (const FaultySystem& system : systems) EXPECT_EQ(system.open_descriptors(), 0U);
      expect_no_debris();
      if (testing::Test::HasFailure()) return;
    }
  expect_restored(3, 3, 3);
}

// Does not see the messages of this name before it is let.
class Held final : public Ranks {
 public:
  Held(std::shared_ptr<Ranks> inner, std::string ending)
      : inner_(std::move(inner)), ending_(std::move(ending)) {}
  std::atomic<bool> held = true;
  std::size_t rank() const override { return inner_->rank(); }
  std::size_t size() const override { return inner_->size(); }
  void set(const std::string& key, const std::string& message) override {
    inner_->set(key, message);
  }
  bool has(const std::string& key) override {
    return !(held && key.ends_with(ending_)) && inner_->has(key);
  }
  std::string get(const std::string& key) override { return inner_->get(key); }
  void remove(const std::string& key) override { inner_->remove(key); }

 private:
  std::shared_ptr<Ranks> inner_;
  std::string ending_;
};

// Rank 0 fails before rank 1 has heard how the save before that has ended.
TEST_F(RankManagerTest, WhoIsLateHearsEverything) {
  const auto local = LocalRanks::make(2);
  const auto late = std::make_shared<Held>(local[1], "save/1/end");
  FaultySystem system;
  on_ranks(2, [&](const auto& ranks) {
    const std::size_t rank = ranks->rank();
    RankProgram program(rank, 2);
    ManagerOptions own = options(rank == 0 ? local[0] : std::shared_ptr<Ranks>(late));
    own.rank_timeout = std::chrono::seconds(20);
    CheckpointManager manager(storage::LocalStorage::create_run(system, path), std::move(own));
    program.go_to(1);
    const SaveHandle first = manager.save(program.state);
    if (rank == 0) {
      first.wait();
      manager.wait();
      system.fail(Call::renameat2, 1, EIO);
    }
    first.wait();
    program.go_to(2);
    const SaveHandle second = manager.save(program.state);
    EXPECT_ERROR(io, "rename", second.wait());
    late->held = false;
    program.go_to(3);
    manager.save(program.state).wait();
  });
  expect_restored(2, 3, 2);
}

TEST_F(RankManagerTest, DamageThatOneRankFindsSetsItAsideForAll) {
  for (std::size_t rank = 0; rank < 3; ++rank) {
    path = directory / std::to_string(rank);
    warnings.clear();
    save_steps(3, {3, 4});
    // Row 2 is rank 1's.
    damage_tensor(folder(4, 2) / "__1_0.distcp");
    expect_restored(rank + 1, 3, 3);
    ASSERT_EQ(warnings.size(), 1U);
    EXPECT_NE(warnings[0].find("set aside"), std::string::npos) << warnings[0];
    EXPECT_EQ(checkpoints(),
              (std::vector<std::string>{folder(3, 1).filename(),
                                        folder(4, 2).filename().string() + ".damaged"}));
  }
}

TEST_F(RankManagerTest, ANamedStepIsNeverAnotherOne) {
  save_steps(3, {3, 4});
  damage_tensor(folder(4, 2) / "__1_0.distcp");
  live(3, [&](RankProgram& program, CheckpointManager& manager, std::size_t) {
    EXPECT_ERROR(corrupt, "__1_0.distcp", manager.restore(program.state, {.step = 4}));
    EXPECT_ERROR(corrupt, "__1_0.distcp", manager.restore(program.state, {.path = folder(4, 2)}));
    EXPECT_ERROR(invalid, "", manager.save(program.state));  // of none of these steps
    EXPECT_EQ(manager.restore(program.state)->step(), 3);
    EXPECT_EQ(program.differs_from(3, 3), "");
  });
}

TEST_F(RankManagerTest, AnyFileThatIsCutIsDamage) {
  for (const std::string name : {".metadata", "__0_0.distcp", "__1_0.distcp", "perdure.json"}) {
    SCOPED_TRACE(name);
    path = directory / name;
    save_steps(2, {3, 4});
    fs::resize_file(folder(4, 2) / name, fs::file_size(folder(4, 2) / name) / 2);
    expect_restored(2, 3, 2);
    EXPECT_EQ(checkpoints().back(), folder(4, 2).filename().string() + ".damaged");
  }
}

// They became visible together, so one that is missing was taken away.
TEST_F(RankManagerTest, AFileThatIsNotThereIsDamage) {
  for (const std::string name : {".metadata", "__0_0.distcp", "__1_0.distcp"}) {
    SCOPED_TRACE(name);
    path = directory / name;
    save_steps(2, {3, 4});
    fs::remove(folder(4, 2) / name);
    expect_restored(2, 3, 2);
    EXPECT_EQ(checkpoints().back(), folder(4, 2).filename().string() + ".damaged");
  }
}

TEST_F(RankManagerTest, WhereAllAreDamagedAllRanksSaySo) {
  save_steps(2, {4});
  damage_tensor(folder(4, 1) / "__0_0.distcp");
  live(2, [&](RankProgram& program, CheckpointManager& manager, std::size_t) {
    EXPECT_ERROR(corrupt, "is damaged", manager.restore(program.state));
  });
}

// Error(invalid) of one is no reason for anyone to take an older one.
TEST_F(RankManagerTest, AModelThatDoesNotFitOneRankIsAnErrorOnAll) {
  save_steps(2, {3, 4});
  live(2, [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
    if (rank == 1) {
      TrainingState::Entry extra;
      extra.name = "extra";
      extra.state_dict = [] { return Value(1); };
      extra.load_state_dict = [](const Value&) {};
      program.state.add_entry(std::move(extra));
    }
    EXPECT_ERROR(invalid, "extra", manager.restore(program.state));
  });
  EXPECT_EQ(checkpoints().size(), 2U);
}

TEST_F(RankManagerTest, RetentionKeepsWhatOneManagerWould) {
  const auto keeping = [](ManagerOptions& own) {
    own.keep_last = 2;
    own.keep_best = {{"loss", Mode::min, 1}};
  };
  live(
      3,
      [](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
        for (std::int64_t step = 1; step <= 6; ++step) {
          program.go_to(step);
          manager.save(program.state, {{"loss", step == 2 ? 0.0 : 1.0}});
        }
        manager.wait();
        if (rank == 0) EXPECT_EQ(manager.all_steps(), (std::vector<std::int64_t>{2, 5, 6}));
        manager.close();
      },
      keeping);
  EXPECT_EQ(checkpoints(),
            (std::vector<std::string>{folder(2, 2).filename(), folder(5, 5).filename(),
                                      folder(6, 6).filename()}));
  EXPECT_TRUE(fs::is_empty(path / ".trash"));
  expect_restored(2, 2, 3, {.step = 2});
}

// Of files and directories in one run, the newest counts.
TEST_F(RankManagerTest, OneProcessAndManyTakeTurns) {
  save_steps(1, {1});
  save_steps(2, {2});
  expect_restored(1, 2, 2);
  save_steps(1, {3});
  expect_restored(3, 3, 1);
  EXPECT_EQ(checkpoints().size(), 3U);
}

TEST_F(RankManagerTest, AllDecideAlikeWhenToSave) {
  std::vector<std::int64_t> saved[3];
  live(
      3,
      [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
        for (std::int64_t step = 1; step <= 200; ++step) {
          program.state.step = step;
          if (!manager.should_save(step)) continue;
          saved[rank].push_back(step);
          program.go_to(step);
          manager.save(program.state);
        }
        manager.close();
      },
      [](ManagerOptions& own) {
        own.save_every = {.steps = 7, .time = std::chrono::milliseconds(20)};
      });
  EXPECT_EQ(saved[0], saved[1]);
  EXPECT_EQ(saved[0], saved[2]);
  for (std::int64_t step = 7; step <= 200; step += 7)
    EXPECT_TRUE(std::ranges::find(saved[0], step) != saved[0].end()) << step;
}

// Each has it of its own, as a scheduler sends it to some or all of the processes; here they are
// threads of one, so all see it, at whatever step they are.
TEST_F(RankManagerTest, ASignalIsHeardAtTheSameStep) {
  std::int64_t ended[3] = {};
  live(
      3,
      [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
        for (std::int64_t step = 1;; ++step) {
          program.go_to(step);
          if (rank == 1 && step == 30) ::raise(SIGUSR1);
          if (manager.should_save(step)) manager.save(program.state);
          if (!manager.preempted()) continue;
          ended[rank] = step;
          break;
        }
        manager.close();
      },
      [](ManagerOptions& own) {
        own.save_every = {.steps = 5};
        own.save_on_signal = {SIGUSR1};
      });
  EXPECT_EQ(ended[0], ended[1]);
  EXPECT_EQ(ended[0], ended[2]);
  EXPECT_EQ(CheckpointFile::open(path / checkpoints().back()).info()->reason, "preemption");
  expect_restored(3, ended[0], 3);
}

TEST_F(RankManagerTest, WhatIsSkippedIsSkippedByAll) {
  std::vector<bool> skipped[2];
  live(
      2,
      [&](RankProgram& program, CheckpointManager& manager, std::size_t rank) {
        for (std::int64_t step = 1; step <= 60; ++step) {
          program.go_to(step);
          skipped[rank].push_back(manager.save(program.state).skipped());
        }
        manager.close();
      },
      [](ManagerOptions& own) { own.when_busy = WhenBusy::skip; });
  EXPECT_EQ(skipped[0], skipped[1]);
  EXPECT_FALSE(skipped[0][0]);
}

TEST_F(RankManagerTest, OnlyOneRunMayHaveTheDirectory) {
  CheckpointManager other(path, options(nullptr));
  const auto errors = errors_of(2, [](RankProgram&, CheckpointManager&, std::size_t) {});
  for (const auto& error : errors) {
    ASSERT_TRUE(error);
    EXPECT_ERROR(locked, "", std::rethrow_exception(error));
  }
}

}  // namespace
}  // namespace perdure::test
