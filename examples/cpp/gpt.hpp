// A small GPT over the characters 0..127; examples/python has the same one, under the same names.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <perdure/value.hpp>
#include <string>

struct Config {
  std::int64_t d_model = 64, layers = 2, heads = 4, context = 64;
  double dropout = 0.1;

  perdure::Dict to_dict() const {
    return {{"d_model", d_model},
            {"layers", layers},
            {"heads", heads},
            {"context", context},
            {"dropout", dropout}};
  }
  static Config from_value(const perdure::Value& v) {
    return {v["d_model"].as_int(), v["layers"].as_int(), v["heads"].as_int(), v["context"].as_int(),
            v["dropout"].as_double()};
  }
};

namespace gpt {

namespace nn = torch::nn;
constexpr std::int64_t kVocabulary = 128;

struct AttentionImpl : nn::Module {
  explicit AttentionImpl(const Config& c) : heads(c.heads), dropout(c.dropout) {
    qkv = register_module("qkv", nn::Linear(c.d_model, 3 * c.d_model));
    proj = register_module("proj", nn::Linear(c.d_model, c.d_model));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    const auto batch = x.size(0), length = x.size(1), d_model = x.size(2);
    const auto parts =
        qkv(x).view({batch, length, 3, heads, d_model / heads}).permute({2, 0, 3, 1, 4});
    const auto y = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {},
                                                    is_training() ? dropout : 0.0,
                                                    /*is_causal=*/true);
    return proj(y.transpose(1, 2).reshape({batch, length, d_model}));
  }
  std::int64_t heads;
  double dropout;
  nn::Linear qkv{nullptr}, proj{nullptr};
};
TORCH_MODULE(Attention);

struct MlpImpl : nn::Module {
  explicit MlpImpl(std::int64_t d_model) {
    fc = register_module("fc", nn::Linear(d_model, 4 * d_model));
    proj = register_module("proj", nn::Linear(4 * d_model, d_model));
  }
  torch::Tensor forward(const torch::Tensor& x) { return proj(torch::gelu(fc(x))); }
  nn::Linear fc{nullptr}, proj{nullptr};
};
TORCH_MODULE(Mlp);

struct BlockImpl : nn::Module {
  explicit BlockImpl(const Config& c) {
    ln1 = register_module("ln1", nn::LayerNorm(nn::LayerNormOptions({c.d_model})));
    attn = register_module("attn", Attention(c));
    ln2 = register_module("ln2", nn::LayerNorm(nn::LayerNormOptions({c.d_model})));
    mlp = register_module("mlp", Mlp(c.d_model));
    dropout = register_module("dropout", nn::Dropout(c.dropout));
  }
  torch::Tensor forward(torch::Tensor x) {
    x = x + dropout(attn(ln1(x)));
    return x + dropout(mlp(ln2(x)));
  }
  nn::LayerNorm ln1{nullptr}, ln2{nullptr};
  Attention attn{nullptr};
  Mlp mlp{nullptr};
  nn::Dropout dropout{nullptr};
};
TORCH_MODULE(Block);

struct GptImpl : nn::Module {
  explicit GptImpl(const Config& c) : context(c.context) {
    tok_emb = register_module("tok_emb", nn::Embedding(kVocabulary, c.d_model));
    pos_emb = register_module("pos_emb", nn::Embedding(c.context, c.d_model));
    dropout = register_module("dropout", nn::Dropout(c.dropout));
    blocks = register_module("blocks", nn::ModuleList());
    for (std::int64_t i = 0; i < c.layers; ++i) blocks->push_back(Block(c));
    ln_f = register_module("ln_f", nn::LayerNorm(nn::LayerNormOptions({c.d_model})));
    nn::init::normal_(tok_emb->weight, 0, 0.02);
    nn::init::normal_(pos_emb->weight, 0, 0.02);
  }

  torch::Tensor forward(const torch::Tensor& tokens) {
    auto x = dropout(tok_emb(tokens) + pos_emb(torch::arange(tokens.size(1))));
    for (const auto& block : *blocks) x = block->as<Block>()->forward(x);
    return torch::matmul(ln_f(x), tok_emb->weight.t());
  }

  // `length` more characters after `start`.
  std::string sample(std::string text, std::int64_t length) {
    const torch::NoGradGuard no_grad;
    eval();
    for (std::int64_t i = 0; i < length; ++i) {
      const std::vector<std::int64_t> tail(
          text.end() - std::min<std::int64_t>(std::ssize(text), context), text.end());
      const auto logits = forward(torch::tensor(tail).unsqueeze(0))[0][-1];
      text +=
          static_cast<char>(torch::multinomial(torch::softmax(logits, -1), 1).item<std::int64_t>());
    }
    return text;
  }

  std::int64_t context;
  nn::Embedding tok_emb{nullptr}, pos_emb{nullptr};
  nn::Dropout dropout{nullptr};
  nn::ModuleList blocks{nullptr};
  nn::LayerNorm ln_f{nullptr};
};
TORCH_MODULE(Gpt);

}  // namespace gpt
