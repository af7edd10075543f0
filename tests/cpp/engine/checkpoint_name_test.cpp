#include "engine/checkpoint_name.hpp"

#include <gtest/gtest.h>

namespace perdure::engine {
namespace {

TEST(CheckpointNameTest, PadsAndGrows) {
  EXPECT_EQ(format({100, 42}), "step-0000000100-g00000042.pt");
  EXPECT_EQ(format({12345678901, 123456789}), "step-12345678901-g123456789.pt");
  EXPECT_EQ(format({0, 1}), "step-0000000000-g00000001.pt");
}

TEST(CheckpointNameTest, ReadsBackWhatItWrites) {
  for (const CheckpointName name :
       {CheckpointName{0, 1}, {100, 42}, {12345678901, 123456789}, {INT64_MAX, kMaxGeneration}})
    EXPECT_EQ(parse_checkpoint_name(format(name)), name);
}

TEST(CheckpointNameTest, TakesNothingElse) {
  for (const char* other :
       {"", "step-", "step-0000000100-g00000042", "step-0000000100-g00000042.pt.damaged",
        "step-100-g42.pt", "step-00000000100-g00000042.pt", "step--000000100-g00000042.pt",
        "step-0000000100-g-0000042.pt", "step-+000000100-g00000042.pt",
        "xstep-0000000100-g00000042.pt", "step-0000000100-g00000000.pt",
        "step-99999999999999999999-g00000042.pt", "step-0000000100-g18446744073709551615.pt",
        "step-0000000100-g00000042.ptx", "latest", "model.pt"})
    EXPECT_EQ(parse_checkpoint_name(other), std::nullopt) << other;
}

TEST(CheckpointNameTest, KnowsDamagedOnesAndTheirGeneration) {
  EXPECT_EQ(parse_damaged_name("step-0000000100-g00000042.pt.damaged"), (CheckpointName{100, 42}));
  EXPECT_EQ(generation_in("step-0000000100-g00000042.pt.damaged-2"), 42U);
  EXPECT_EQ(generation_in("step-0000000100-g00000042.pt"), 42U);
  EXPECT_EQ(generation_in("model.pt.damaged"), 0U);
}

}  // namespace
}  // namespace perdure::engine
