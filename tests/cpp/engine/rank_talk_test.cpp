// What ranks tell each other: messages, errors, and that nobody waits without an end.
#include "engine/rank_talk.hpp"

#include <atomic>

#include "engine/rank_threads.hpp"

namespace perdure::test {
namespace {

using engine::error_in;
using engine::message_of;
using engine::RankTalk;

constexpr RankTalk::Seconds kLong(60), kShort(0.3), kBusy(0.6);

std::exception_ptr error_with(ErrorCode code, const std::string& text = "x", int number = 0) {
  return std::make_exception_ptr(Error(code, text, number));
}

TEST(LocalRanksTest, AreOneStore) {
  const auto ranks = LocalRanks::make(3);
  EXPECT_EQ(ranks[2]->rank(), 2U);
  EXPECT_EQ(ranks[2]->size(), 3U);
  ranks[0]->set("a", "1");
  EXPECT_TRUE(ranks[1]->has("a"));
  ranks[1]->set("a", "");
  EXPECT_EQ(ranks[2]->get("a"), "");
  ranks[2]->remove("a");
  EXPECT_FALSE(ranks[0]->has("a"));
  EXPECT_EQ(ranks[0]->next_use(), ranks[1]->next_use());
  EXPECT_NE(ranks[0]->next_use(), ranks[0]->next_use());
}

TEST(RankTalkTest, MessagesComeAsTheyWereTold) {
  on_ranks(2, [](const auto& ranks) {
    RankTalk talk(ranks, kLong);
    const std::string odd("-+=\0\n\xff", 6);
    if (talk.leads()) {
      talk.tell("a", "alpha");
      talk.tell("empty", "");
      talk.tell("odd", odd);
      EXPECT_EQ(talk.hear("back", 1), "");
    } else {
      EXPECT_EQ(talk.hear("odd", 0), odd);
      EXPECT_EQ(talk.hear("empty", 0), "");
      EXPECT_EQ(talk.hear("a", 0), "alpha");
      talk.forget("a");
      EXPECT_FALSE(talk.has("a"));
      EXPECT_TRUE(talk.has("empty"));
      talk.tell("back", "");
    }
  });
}

TEST(RankTalkTest, TwoUsersOfOneStoreDoNotHearEachOther) {
  on_ranks(2, [](const auto& ranks) {
    RankTalk one(ranks, kLong), two(ranks, kLong);
    if (one.leads()) {
      two.tell("a", "of two");
      one.tell("a", "of one");
    }
    EXPECT_EQ(one.hear("a", 0), "of one");
    EXPECT_EQ(two.hear("a", 0), "of two");
  });
}

TEST(RankTalkTest, AnErrorIsAMessage) {
  EXPECT_EQ(message_of(nullptr), "");
  EXPECT_EQ(error_in("", 3), nullptr);
  for (const ErrorCode code :
       {ErrorCode::io, ErrorCode::corrupt, ErrorCode::not_found, ErrorCode::invalid,
        ErrorCode::unsupported, ErrorCode::cancelled, ErrorCode::full, ErrorCode::locked}) {
    const Error error = error_of([&] {
      std::rethrow_exception(
          error_in(message_of(error_with(code, "3 lines\n\n'of' 12 text ", ENOSPC)), 7));
    });
    EXPECT_EQ(error.code(), code);
    EXPECT_EQ(error.errno_value(), ENOSPC);
    EXPECT_STREQ(error.what(), "rank 7: 3 lines\n\n'of' 12 text ");
  }
  const auto told = [](const std::exception_ptr& error) {
    return text_of(error_in(message_of(error), 1));
  };
  EXPECT_EQ(told(error_with(ErrorCode::io, "")), "rank 1: ");
  EXPECT_EQ(told(std::make_exception_ptr(std::runtime_error("no memory"))), "rank 1: no memory");
  EXPECT_EQ(told(std::make_exception_ptr(7)), "rank 1: an exception of unknown type");
}

TEST(RankTalkTest, WhatIsLedAllRanksGet) {
  on_ranks(4, [](const auto& ranks) {
    RankTalk talk(ranks, kLong);
    for (int i = 0; i < 50; ++i) {
      const std::string key = "key/" + std::to_string(i);
      EXPECT_EQ(talk.led(key, [&] { return i % 2 == 0 ? key : ""; }), i % 2 == 0 ? key : "");
      const Error error = error_of([&] {
        talk.led(key + "/wrong",
                 []() -> std::string { throw Error(ErrorCode::full, "no space", ENOSPC); });
      });
      EXPECT_EQ(error.code(), ErrorCode::full);
      EXPECT_EQ(error.errno_value(), ENOSPC);
      EXPECT_STREQ(error.what(), talk.leads() ? "no space" : "rank 0: no space");
    }
  });
}

TEST(RankTalkTest, WhoNeverComesIsNamed) {
  on_ranks(3, [](const auto& ranks) {
    if (ranks->rank() == 2) return;
    RankTalk talk(ranks, kShort);
    EXPECT_ERROR(io, "rank 2 of 3 has shown no sign of life for 0.3 s", talk.hear("a", 2));
  });
}

TEST(RankTalkTest, WhoStopsShowingLifeIsNamed) {
  on_ranks(2, [](const auto& ranks) {
    RankTalk talk(ranks, kShort);
    if (talk.leads()) EXPECT_ERROR(io, "rank 1 of 2", talk.hear("a", 1));
  });
}

// Far longer than the timeout, because the other one lives.
TEST(RankTalkTest, SignsOfLifeKeepAWaitGoing) {
  on_ranks(2, [](const auto& ranks) {
    RankTalk talk(ranks, kBusy);
    if (talk.leads()) {
      EXPECT_EQ(talk.hear("a", 1), "late");
      talk.tell("b", "later");
      return;
    }
    const auto begin = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - begin < 2.5 * kBusy) {
      talk.show_life();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    talk.tell("a", "late");
    EXPECT_EQ(talk.hear("b", 0), "later");
  });
}

// One that waits for rank 0, while that waits for another one, which lives.
TEST(RankTalkTest, Rank0LivesWhileItWaits) {
  on_ranks(3, [](const auto& ranks) {
    RankTalk talk(ranks, kBusy);
    const auto begin = std::chrono::steady_clock::now();
    switch (ranks->rank()) {
      case 0:
        talk.tell("from 0", talk.hear("from 2", 2));
        break;
      case 1:
        EXPECT_EQ(talk.hear("from 0", 0), "late");
        break;
      default:
        while (std::chrono::steady_clock::now() - begin < 2.5 * kBusy) {
          talk.show_life();
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        talk.tell("from 2", "late");
    }
  });
}

// That they have come to different calls is found out, though both live.
TEST(RankTalkTest, TwoThatWaitForEachOtherDoNotWaitForEver) {
  on_ranks(2, [](const auto& ranks) {
    RankTalk talk(ranks, kShort);
    EXPECT_ERROR(io, talk.leads() ? "rank 1 of 2" : "rank 0 of 2",
                 talk.hear(talk.leads() ? "a" : "b", 1 - ranks->rank()));
  });
}

class Counting final : public Ranks {
 public:
  explicit Counting(std::shared_ptr<Ranks> inner) : inner_(std::move(inner)) {}
  std::atomic<int> sets = 0;
  std::size_t rank() const override { return inner_->rank(); }
  std::size_t size() const override { return inner_->size(); }
  void set(const std::string& key, const std::string& message) override {
    ++sets;
    inner_->set(key, message);
  }
  bool has(const std::string& key) override { return inner_->has(key); }
  std::string get(const std::string& key) override { return inner_->get(key); }
  void remove(const std::string& key) override { inner_->remove(key); }

 private:
  std::shared_ptr<Ranks> inner_;
};

TEST(RankTalkTest, LifeIsShownNowAndThen) {
  const auto counting = std::make_shared<Counting>(LocalRanks::make(2)[0]);
  RankTalk talk(counting, std::chrono::hours(8));
  for (int i = 0; i < 10'000; ++i) talk.show_life();
  EXPECT_EQ(counting->sets, 1);
}

// errors[i] is what happened to rank i; gives what each is told.
std::vector<Error> agreed(const std::vector<std::exception_ptr>& errors) {
  std::vector<Error> told(errors.size(), Error(ErrorCode::cancelled, ""));
  const auto thrown = errors_of_ranks(errors.size(), [&](const auto& ranks) {
    RankTalk talk(ranks, kLong);
    talk.agree("first", nullptr);
    talk.agree("second", errors[ranks->rank()]);
  });
  for (std::size_t i = 0; i < errors.size(); ++i)
    if (thrown[i]) told[i] = error_of([&] { std::rethrow_exception(thrown[i]); });
  return told;
}

TEST(RankTalkTest, AllAgreeThatAllWentWell) {
  for (const Error& error : agreed({nullptr, nullptr, nullptr}))
    EXPECT_EQ(error.code(), ErrorCode::cancelled) << error.what();
}

TEST(RankTalkTest, DamageOfOneIsDamageOfAll) {
  for (std::size_t who = 0; who < 3; ++who) {
    std::vector<std::exception_ptr> errors(3);
    errors[who] = error_with(ErrorCode::corrupt, "block 7");
    const auto told = agreed(errors);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(told[i].code(), ErrorCode::corrupt);
      EXPECT_NE(std::string(told[i].what()).find("block 7"), std::string::npos) << told[i].what();
    }
    EXPECT_STREQ(told[who].what(), "block 7");
  }
}

// Whatever goes wrong with one, no rank may take the checkpoint for damaged.
TEST(RankTalkTest, AnythingElseIsWorseThanDamage) {
  for (std::size_t damaged = 0; damaged < 3; ++damaged)
    for (std::size_t failed = 0; failed < 3; ++failed) {
      if (damaged == failed) continue;
      std::vector<std::exception_ptr> errors(3);
      errors[damaged] = error_with(ErrorCode::corrupt, "block 7");
      errors[failed] = error_with(ErrorCode::io, "no permission", EACCES);
      for (const Error& error : agreed(errors)) {
        EXPECT_EQ(error.code(), ErrorCode::io) << error.what();
        EXPECT_EQ(error.errno_value(), EACCES);
      }
    }
}

TEST(RankTalkTest, WhoDoesNotComeToAgreeFailsTheOthers) {
  const auto thrown = errors_of_ranks(3, [](const auto& ranks) {
    if (ranks->rank() == 1) return;
    RankTalk(ranks, kShort)
        .agree("a", ranks->rank() == 2 ? error_with(ErrorCode::corrupt) : nullptr);
  });
  for (const std::size_t rank : {0, 2}) {
    ASSERT_TRUE(thrown[rank]);
    EXPECT_ERROR(io, "rank 1 of 3", std::rethrow_exception(thrown[rank]));
  }
}

TEST(RankTalkTest, WhatIsOverIsForgottenOnceAllHaveToldWhatComesNext) {
  const auto all = LocalRanks::make(2);
  RankTalk talk(all[0], kLong), other(all[1], kLong);
  for (const char* key : {"a", "b", "c"}) talk.tell(key, "");
  talk.forget_later("a");
  talk.forget_later("b");
  EXPECT_TRUE(other.has("a"));
  talk.all_have_told();
  EXPECT_FALSE(other.has("a"));
  EXPECT_FALSE(other.has("b"));
  EXPECT_TRUE(other.has("c"));
}

}  // namespace
}  // namespace perdure::test
