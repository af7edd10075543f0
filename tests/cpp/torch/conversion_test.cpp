// Tensors, modules, generators and StepLR as values and back.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <cstring>
#include <perdure/torch.hpp>

namespace {

using perdure::Dict;
using perdure::DType;
using perdure::Error;
using perdure::ErrorCode;
using perdure::Kind;
using perdure::Value;

// The text and code of the Error that `f` throws; "" where it throws none.
template <class F>
std::string error_of(const F& f, ErrorCode code = ErrorCode::invalid) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

void expect_says(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << part << "\nnot in\n" << text;
}

torch::Tensor bytes(std::int64_t count) {
  return torch::arange(count, torch::kLong).mul(37).add(11).remainder(256).to(torch::kByte);
}

std::vector<std::string> keys_of(const Value& value) {
  std::vector<std::string> keys;
  for (const auto& [key, entry] : value.as_dict()) keys.push_back(key.as_string());
  return keys;
}

class EveryDType : public testing::TestWithParam<std::size_t> {};

TEST_P(EveryDType, ComesBackWithItsBits) {
  const auto dtype = static_cast<DType>(GetParam());
  const torch::Tensor raw = bytes(64 * 16);
  torch::Tensor t = torch::empty({0}, perdure::detail::scalar_type(dtype));
  t.set_(raw.storage(), 3, {4, 2}, {5, 2});
  const Value value(t);
  EXPECT_EQ(value.as_tensor().dtype, dtype);
  EXPECT_EQ(static_cast<std::size_t>(t.element_size()), perdure::itemsize(dtype));
  EXPECT_EQ(value.as_tensor().shape, (std::vector<std::int64_t>{4, 2}));
  EXPECT_EQ(value.as_tensor().strides, (std::vector<std::int64_t>{5, 2}));
  EXPECT_EQ(value.as_tensor().storage_offset, 3);
  const torch::Tensor back = perdure::to_tensor(value);
  EXPECT_EQ(back.scalar_type(), t.scalar_type());
  EXPECT_EQ(back.sizes(), t.sizes());
  EXPECT_EQ(back.strides(), t.strides());
  EXPECT_EQ(back.const_data_ptr(), t.const_data_ptr());
  EXPECT_TRUE(perdure::detail::same_bits(back, t));
}
INSTANTIATE_TEST_SUITE_P(All, EveryDType, testing::Range<std::size_t>(0, perdure::kDTypeCount));

TEST(TensorConversion, KeepsTheMemoryAlive) {
  Value value;
  {
    torch::Tensor t = torch::arange(1000, torch::kInt);
    value = t;
  }
  torch::Tensor back = perdure::to_tensor(value);
  value = Value();
  EXPECT_TRUE(back.equal(torch::arange(1000, torch::kInt)));
}

TEST(TensorConversion, KeepsShapesWithoutElementsAndScalars) {
  for (const torch::Tensor& t : {torch::zeros({}), torch::zeros({0}), torch::zeros({3, 0, 2})}) {
    const torch::Tensor back = perdure::to_tensor(Value(t));
    EXPECT_EQ(back.sizes(), t.sizes());
    EXPECT_EQ(back.strides(), t.strides());
  }
}

TEST(TensorConversion, KeepsRequiresGradConjAndNeg) {
  EXPECT_TRUE(perdure::to_tensor(Value(torch::ones({2}, torch::requires_grad()))).requires_grad());
  EXPECT_FALSE(perdure::to_tensor(Value(torch::ones({2}))).requires_grad());
  const torch::Tensor z = torch::complex(torch::ones({2}), torch::full({2}, 2.0));
  const torch::Tensor conj = perdure::to_tensor(Value(z.conj()));
  EXPECT_TRUE(conj.is_conj());
  EXPECT_TRUE(conj.equal(z.conj()));
  const torch::Tensor imag = torch::imag(z.conj());
  ASSERT_TRUE(imag.is_neg());
  const torch::Tensor neg = perdure::to_tensor(Value(imag));
  EXPECT_TRUE(neg.is_neg());
  EXPECT_TRUE(neg.equal(torch::full({2}, -2.0)));
}

TEST(TensorConversion, SharedStoragesStayShared) {
  const torch::Tensor base = torch::zeros({6});
  Value a, b;
  {
    const perdure::SharedStorages shared;
    a = base;
    b = base.slice(0, 2, 4);
  }
  EXPECT_EQ(a.as_tensor().storage, b.as_tensor().storage);
  torch::Tensor x = perdure::to_tensor(a), y = perdure::to_tensor(b);
  EXPECT_TRUE(x.is_alias_of(y));
  y.fill_(7);
  EXPECT_EQ(x.sum().item<double>(), 14);
  // Outside of a scope the storages are two objects over the same memory, which a save merges.
  const Value c(base);
  EXPECT_EQ(c.as_tensor().storage->data, a.as_tensor().storage->data);
  EXPECT_EQ(c.as_tensor().storage->size, a.as_tensor().storage->size);
}

TEST(TensorConversion, MetaTensorsHaveNoData) {
  const torch::Tensor t = torch::empty({3, 4}, torch::device(torch::kMeta).dtype(torch::kHalf));
  const Value value(t);
  EXPECT_EQ(value.as_tensor().storage->device, "meta");
  EXPECT_EQ(value.as_tensor().storage->data, nullptr);
  const torch::Tensor back = perdure::to_tensor(value);
  EXPECT_TRUE(back.is_meta());
  EXPECT_EQ(back.sizes(), t.sizes());
  EXPECT_EQ(back.scalar_type(), torch::kHalf);
}

TEST(TensorConversion, RefusesWhatIsNoStridedTensor) {
  const auto refused = [](const torch::Tensor& t) {
    return error_of([&] { Value{t}; }, ErrorCode::unsupported);
  };
  expect_says(refused(torch::ones({2, 2}).to_sparse()), {"sparse", "indices()"});
  expect_says(refused(torch::quantize_per_tensor(torch::ones({2}), 0.1, 0, torch::kQInt8)),
              {"quantized", "int_repr()"});
  expect_says(refused(at::_nested_tensor_from_tensor_list({torch::ones({2}), torch::ones({3})})),
              {"nested", "unbind()"});
  expect_says(refused(torch::empty({2}, at::ScalarType::UInt4)), {"UInt4"});
  expect_says(error_of([] { Value{torch::Tensor()}; }), {"undefined"});
}

TEST(TensorConversion, RefusesTensorsThatCannotBePlaced) {
  perdure::Tensor unread = perdure::Tensor::over(nullptr, DType::float32, {4});
  expect_says(error_of([&] { perdure::to_tensor(unread); }), {"no data"});
  float data[4] = {};
  perdure::Tensor outside = perdure::Tensor::over(data, DType::float32, {4});
  outside.storage_offset = 1;
  expect_says(error_of([&] { perdure::to_tensor(outside); }), {"past the end"});
  perdure::Tensor elsewhere = perdure::Tensor::over(data, DType::float32, {4});
  elsewhere.storage->device = "cuda:0";
  if (!torch::cuda::is_available())
    expect_says(error_of([&] { perdure::to_tensor(elsewhere); }, ErrorCode::unsupported),
                {"cuda:0", "map_location"});
}

// --- Modules ---

struct NetImpl : torch::nn::Module {
  torch::nn::Linear fc1{nullptr}, fc2{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Sequential tail{nullptr};
  torch::Tensor scale, table;
  NetImpl() {
    fc1 = register_module("fc1", torch::nn::Linear(3, 4));
    norm = register_module("norm", torch::nn::BatchNorm1d(4));
    fc2 = register_module("fc2", torch::nn::Linear(torch::nn::LinearOptions(4, 2).bias(false)));
    tail = register_module("tail",
                           torch::nn::Sequential(torch::nn::ReLU(), torch::nn::InstanceNorm1d(2)));
    scale = register_parameter("scale", torch::ones({1}));
    table = register_buffer("table", torch::arange(3));
  }
};
TORCH_MODULE(Net);

TEST(ModuleState, HasPythonsKeysInPythonsOrder) {
  Net net;
  const Value state = perdure::state_dict(net);
  EXPECT_EQ(state.kind(), Kind::ordered_dict);
  EXPECT_EQ(keys_of(state),
            (std::vector<std::string>{"scale", "table", "fc1.weight", "fc1.bias", "norm.weight",
                                      "norm.bias", "norm.running_mean", "norm.running_var",
                                      "norm.num_batches_tracked", "fc2.weight"}));
  EXPECT_FALSE(state["scale"].as_tensor().requires_grad);
  EXPECT_FALSE(state["scale"].as_tensor().parameter);
}

TEST(ModuleState, HasPythonsMetadata) {
  const Value state = perdure::state_dict(Net());
  const Value& metadata = state.as_dict().attributes()->at("_metadata");
  EXPECT_EQ(metadata.kind(), Kind::ordered_dict);
  EXPECT_EQ(keys_of(metadata),
            (std::vector<std::string>{"", "fc1", "norm", "fc2", "tail", "tail.0", "tail.1"}));
  EXPECT_EQ(metadata["norm"]["version"].as_int(), 2);
  EXPECT_EQ(metadata["tail.1"]["version"].as_int(), 2);
  EXPECT_EQ(metadata["fc1"]["version"].as_int(), 1);
  EXPECT_EQ(metadata["fc1"].kind(), Kind::dict);
}

TEST(ModuleState, ComesBackIntoTheLiveTensors) {
  Net from, into;
  from->norm->forward(torch::randn({8, 4}));
  const void* memory = into->fc1->weight.data_ptr();
  perdure::load_state_dict(into, perdure::state_dict(from));
  EXPECT_EQ(into->fc1->weight.data_ptr(), memory);
  EXPECT_TRUE(into->fc1->weight.requires_grad());
  const Value a = perdure::state_dict(from), b = perdure::state_dict(into);
  for (const auto& [key, entry] : a.as_dict())
    EXPECT_TRUE(perdure::detail::same_bits(perdure::to_tensor(entry),
                                           perdure::to_tensor(b[key.as_string()])))
        << key.as_string();
  EXPECT_EQ(into->norm->num_batches_tracked.item<std::int64_t>(), 1);
}

TEST(ModuleState, TakesHoldersPointersAndModules) {
  Net holder;
  std::shared_ptr<NetImpl> pointer = holder.ptr();
  torch::nn::Module& module = *pointer;
  EXPECT_EQ(keys_of(perdure::state_dict(pointer)), keys_of(perdure::state_dict(holder)));
  EXPECT_EQ(keys_of(perdure::state_dict(module)), keys_of(perdure::state_dict(holder)));
  perdure::load_state_dict(module, perdure::state_dict(pointer));
  const std::shared_ptr<NetImpl> null;
  expect_says(error_of([&] { perdure::state_dict(null); }), {"null"});
}

TEST(ModuleState, ListsEverythingThatDoesNotFitAndChangesNothing) {
  Net net;
  const torch::Tensor before = net->scale.detach().clone();
  const Value own = perdure::state_dict(net);
  Dict state = own.as_dict();
  state.set("scale", torch::full({1}, 5.0));
  state.set("fc1.weight", torch::zeros({4, 5}));
  state.set("fc1.bias", torch::zeros({4}, torch::kDouble));
  state.set("norm.bias", 3);
  state.set("extra", torch::zeros({1}));
  Dict without;
  for (const auto& [key, entry] : state)
    if (key.as_string() != "fc2.weight") without.set(key, entry);
  expect_says(error_of([&] { perdure::load_state_dict(net, without); }),
              {"\n  fc1.weight  wrong shape  float32 [4, 5]  float32 [4, 3]\n",
               "\n  fc1.bias    wrong dtype  float64 [4]     float32 [4]\n",
               "\n  norm.bias   wrong dtype  a int           float32 [4]\n",
               "\n  fc2.weight  missing      -               float32 [2, 4]\n",
               "\n  extra       unexpected   float32 [1]     -"});
  EXPECT_TRUE(net->scale.equal(before));
  expect_says(error_of([&] { perdure::load_state_dict(net, 3); }), {"a int in the file"});
}

TEST(ModuleState, TakesThePrefixesOfWrappersFromTheKeys) {
  torch::nn::Linear saved(2, 2), fc(2, 2);
  const auto prefixed = [&](const std::string& prefix) {
    const Value own = perdure::state_dict(saved);
    Dict state;
    for (const auto& [key, entry] : own.as_dict()) state.set(prefix + key.as_string(), entry);
    return state;
  };
  for (const char* prefix : {"module.", "_orig_mod.", "module._orig_mod."}) {
    fc->reset_parameters();
    perdure::load_state_dict(fc, prefixed(prefix));
    EXPECT_TRUE(fc->weight.equal(saved->weight)) << prefix;
  }
  expect_says(error_of([&] { perdure::load_state_dict(fc, prefixed("other.")); }),
              {"weight  missing  did you mean other.weight?"});
}

struct TiedImpl : torch::nn::Module {
  torch::nn::Embedding in{nullptr};
  torch::Tensor out, row;
  TiedImpl() {
    in = register_module("in", torch::nn::Embedding(4, 3));
    out = register_parameter("out", in->weight);
    row = register_buffer("row", in->weight.detach()[1]);
  }
};
TORCH_MODULE(Tied);

TEST(ModuleState, TiedTensorsAreOneStorageInTheFile) {
  Tied tied;
  const Value state = perdure::state_dict(tied);
  EXPECT_EQ(state["in.weight"].as_tensor().storage, state["out"].as_tensor().storage);
  EXPECT_EQ(state["in.weight"].as_tensor().storage, state["row"].as_tensor().storage);
  perdure::load_state_dict(tied, state);
}

TEST(ModuleState, RefusesTwoValuesForWhatIsTied) {
  Tied tied;
  const torch::Tensor weight = torch::randn({4, 3});
  const torch::Tensor before = tied->out.detach().clone();
  const auto load = [&](const torch::Tensor& out, const torch::Tensor& row) {
    const Dict state{{"out", out}, {"row", row}, {"in.weight", weight}};
    return error_of([&] { perdure::load_state_dict(tied, state); });
  };
  const std::string whole = load(weight + 1, weight[1].clone());
  expect_says(whole, {"\"out\" and \"in.weight\" are tied", "different values"});
  expect_says(load(weight.clone(), weight[1] + 1), {"\"row\""});
  EXPECT_TRUE(tied->out.equal(before));
  EXPECT_EQ(load(weight.clone(), weight[1].clone()), "");
  EXPECT_TRUE(tied->out.equal(weight));
}

// --- Generators and StepLR ---

TEST(GeneratorState, GoesOnWithTheSameNumbers) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(7);
  torch::randn({3}, generator);
  const Value state = perdure::state_dict(generator);
  EXPECT_EQ(state.as_tensor().dtype, DType::uint8);
  const torch::Tensor expected = torch::randn({5}, generator);
  EXPECT_FALSE(torch::randn({5}, generator).equal(expected));
  perdure::load_state_dict(generator, state);
  EXPECT_TRUE(torch::randn({5}, generator).equal(expected));
}

TEST(GeneratorState, RefusesOtherTensors) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(7);
  expect_says(
      error_of([&] { perdure::load_state_dict(generator, torch::zeros({3}, torch::kByte)); }),
      {"3 bytes"});
  expect_says(error_of([&] { perdure::load_state_dict(generator, "seed"); }), {"uint8 tensor"});
}

double rate(torch::optim::Optimizer& optimizer) {
  return optimizer.param_groups()[0].options().get_lr();
}

TEST(StepLRState, GoesOnWithTheSameSchedule) {
  const auto param = torch::ones({1}, torch::requires_grad());
  torch::optim::SGD a({param}, 1.0), b({param}, 1.0);
  torch::optim::StepLR steps_a(a, 3, 0.5), steps_b(b, 3, 0.5);
  for (int i = 0; i < 5; ++i) steps_a.step();
  const Value state = perdure::state_dict(steps_a);
  EXPECT_EQ(keys_of(state), (std::vector<std::string>{"step_size", "gamma", "last_epoch",
                                                      "_step_count", "_last_lr"}));
  EXPECT_EQ(state["_last_lr"][0].as_double(), rate(a));
  perdure::load_state_dict(steps_b, state);
  b.param_groups()[0].options().set_lr(rate(a));
  for (int i = 0; i < 7; ++i) {
    steps_a.step();
    steps_b.step();
    EXPECT_EQ(rate(a), rate(b));
  }
  EXPECT_LT(rate(a), 0.2);
}

TEST(StepLRState, RefusesOtherSchedules) {
  torch::optim::SGD optimizer({torch::ones({1}, torch::requires_grad())}, 1.0);
  torch::optim::StepLR steps(optimizer, 3, 0.5), other(optimizer, 4, 0.1);
  expect_says(error_of([&] { perdure::load_state_dict(steps, perdure::state_dict(other)); }),
              {"step_size 4", "gamma 0.1"});
  expect_says(
      error_of([&] { perdure::load_state_dict(steps, Dict{{"T_max", 5}, {"last_epoch", 1}}); }),
      {"not the state of a StepLR"});
}

}  // namespace
