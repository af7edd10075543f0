// A restore reads straight into a module's parameters and buffers and an optimizer's state.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <map>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>
#include <string>

#include "expect_error.hpp"
#include "format/memory_source.hpp"

namespace perdure::test {
namespace {

namespace nn = torch::nn;
namespace optim = torch::optim;

struct TiedImpl : nn::Module {
  at::Tensor embedding, head;
  nn::BatchNorm1d norm{11};
  nn::Conv2d conv{nn::Conv2dOptions(3, 4, 3)};
  explicit TiedImpl(bool tied = true) {
    embedding = register_parameter("embedding", torch::randn({11, 5}));
    head = register_parameter("head", tied ? embedding : torch::randn({11, 5}));
    register_module("norm", norm);
    conv->weight.set_data(conv->weight.contiguous(at::MemoryFormat::ChannelsLast));
    register_module("conv", conv);
  }
};
TORCH_MODULE(Tied);

std::string saved(const TrainingState& state) { return file_of(state.state_dict()); }
void restore(TrainingState& state, const std::string& file) {
  state.restore(CheckpointFile::open(source_of(file)));
}

std::map<std::string, const void*> places(const nn::Module& module) {
  std::map<std::string, const void*> out;
  detail::for_each_tensor(module, "", [&](const std::string& key, const at::Tensor& x, bool) {
    out[key] = x.const_data_ptr();
  });
  return out;
}
bool same(const nn::Module& a, const nn::Module& b) {
  std::map<std::string, at::Tensor> theirs;
  detail::for_each_tensor(
      b, "", [&](const std::string& key, const at::Tensor& x, bool) { theirs[key] = x; });
  bool equal = true;
  detail::for_each_tensor(a, "", [&](const std::string& key, const at::Tensor& x, bool) {
    equal = equal && detail::same_bits(x, theirs.at(key));
  });
  return equal;
}

TEST(LiveRestore, AModuleKeepsItsTensors) {
  torch::manual_seed(1);
  Tied a, b;
  TrainingState from, to;
  from.add("model", a), from.add("optimizer", nullptr);
  to.add("model", b), to.add("optimizer", nullptr);
  ASSERT_FALSE(same(*a, *b));
  const auto before = places(*b);
  const auto version = b->conv->weight._version();
  restore(to, saved(from));
  EXPECT_TRUE(same(*a, *b));
  EXPECT_EQ(places(*b), before);
  EXPECT_EQ(b->conv->weight._version(), version);  // nothing was copied
  EXPECT_TRUE(b->embedding.requires_grad() && b->embedding.is_leaf());
}

TEST(LiveRestore, TwoValuesForOneTiedWeightAreSeenBeforeAnythingChanges) {
  Tied apart(std::make_shared<TiedImpl>(false)), tied, untouched;
  TrainingState from, to;
  from.add("model", apart), from.add("optimizer", nullptr);
  to.add("model", tied), to.add("optimizer", nullptr);
  {
    const at::NoGradGuard no_grad;
    torch::manual_seed(7);
    tied->norm->weight.normal_();
  }
  const at::Tensor before = tied->norm->weight.detach().clone();
  EXPECT_ERROR(invalid, "tied", restore(to, saved(from)));
  EXPECT_TRUE(detail::same_bits(tied->norm->weight, before));
  // Equal values are as good as one.
  const at::NoGradGuard no_grad;
  apart->head.copy_(apart->embedding);
  restore(to, saved(from));
  EXPECT_TRUE(same(*apart, *tied));
}

TEST(LiveRestore, WhatDoesNotFitIsListedAndNothingChanges) {
  nn::Sequential a(nn::Linear(3, 4), nn::Linear(4, 5)), b(nn::Linear(3, 4), nn::Linear(4, 6));
  TrainingState from, to;
  from.add("model", a), from.add("optimizer", nullptr);
  to.add("model", b), to.add("optimizer", nullptr);
  const at::Tensor before = b->parameters()[0].detach().clone();
  EXPECT_ERROR(invalid, "\"1.weight\": shape [5, 4] in the file, [6, 4] here",
               restore(to, saved(from)));
  EXPECT_TRUE(detail::same_bits(b->parameters()[0], before));
}

TEST(LiveRestore, ATensorByItselfIsReadInPlace) {
  at::Tensor a = torch::randn({30, 40}), b = torch::zeros({30, 40});
  TrainingState from, to;
  from.add("average", a);
  to.add("average", b);
  const void* place = b.data_ptr();
  const auto version = b._version();
  restore(to, saved(from));
  EXPECT_TRUE(detail::same_bits(a, b));
  EXPECT_EQ(b.data_ptr(), place);
  EXPECT_EQ(b._version(), version);
}

template <class O>
class LiveRestoreOf : public testing::Test {
 protected:
  static O make(const nn::Linear& model) {
    if constexpr (std::is_same_v<O, optim::SGD>)
      return O(model->parameters(), optim::SGDOptions(0.1).momentum(0.9));
    else if constexpr (std::is_same_v<O, optim::RMSprop>)
      return O(model->parameters(), optim::RMSpropOptions(0.1).momentum(0.5).centered(true));
    else if constexpr (std::is_same_v<O, optim::LBFGS>)
      return O(model->parameters(), optim::LBFGSOptions(0.1).max_iter(3).history_size(2));
    else
      return O(model->parameters());
  }
  static void train(nn::Linear& model, O& optimizer, int steps, unsigned seed) {
    torch::manual_seed(seed);
    for (int i = 0; i < steps; ++i) {
      const at::Tensor x = torch::randn({4, 30});
      optimizer.step([&] {
        optimizer.zero_grad();
        const at::Tensor loss = model->forward(x).square().mean();
        loss.backward();
        return loss;
      });
    }
  }
  static std::vector<const void*> moments(const O& optimizer) {
    std::vector<const void*> out;
    for (const auto& [number, state] : state_dict(optimizer)["state"].as_dict())
      for (const auto& [key, item] : state.as_dict()) collect_live(item, out);
    return out;
  }
  static void collect_live(const Value& item, std::vector<const void*>& out) {
    if (item.kind() == Kind::list)
      for (const Value& each : item.as_items()) collect_live(each, out);
    else if (item.kind() == Kind::tensor && item.as_tensor().liveness == Liveness::live)
      out.push_back(item.as_tensor().storage->data);
  }
};

using Optimizers = testing::Types<optim::SGD, optim::Adam, optim::AdamW, optim::RMSprop,
                                  optim::Adagrad, optim::LBFGS>;
TYPED_TEST_SUITE(LiveRestoreOf, Optimizers);

TYPED_TEST(LiveRestoreOf, StateThatIsThereIsReadInPlaceAndFreshStateIsKept) {
  for (const bool fresh : {false, true}) {
    torch::manual_seed(1);
    nn::Linear a(30, 50), b(30, 50);
    TypeParam from_optimizer = this->make(a), to_optimizer = this->make(b);
    TrainingState from, to;
    from.add("model", a), from.add("optimizer", from_optimizer);
    to.add("model", b), to.add("optimizer", to_optimizer);
    this->train(a, from_optimizer, 3, 1);
    const std::string file = file_of(from.state_dict());
    this->train(a, from_optimizer, 3, 2);

    if (!fresh) this->train(b, to_optimizer, 2, 3);
    const auto before = this->moments(to_optimizer);
    restore(to, file);
    if (!before.empty()) {
      EXPECT_EQ(this->moments(to_optimizer), before);
    }
    this->train(b, to_optimizer, 3, 2);
    EXPECT_TRUE(same(*a, *b));
  }
}

// The file is gone when the optimizer goes on, and no two states share what it kept.
TEST(LiveRestore, OneLoadedStateForTwoOptimizersIsTwo) {
  nn::Linear a(3, 4), b(3, 4), c(3, 4);
  optim::Adam first(a->parameters()), second(b->parameters()), third(c->parameters());
  first.zero_grad();
  a->forward(torch::randn({2, 3})).sum().backward();
  first.step();
  const Value loaded = load_bytes(file_of(state_dict(first)));
  load_state_dict(second, loaded);
  load_state_dict(third, loaded);
  const auto moment = [](optim::Adam& optimizer) {
    return state_dict(optimizer)["state"][0]["exp_avg"].as_tensor().storage->data;
  };
  EXPECT_NE(moment(second), moment(third));
}

}  // namespace
}  // namespace perdure::test
