"""A small GPT over the characters 0..127; examples/cpp has the same one, under the same names."""

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 128
CONFIG = {"d_model": 64, "layers": 2, "heads": 4, "context": 64, "dropout": 0.1}


class Attention(nn.Module):
    def __init__(self, d_model, heads, dropout):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        batch, length, d_model = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, d_model // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, d_model))


class Mlp(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.fc = nn.Linear(d_model, 4 * d_model)
        self.proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.proj(F.gelu(self.fc(x)))


class Block(nn.Module):
    def __init__(self, d_model, heads, dropout):
        super().__init__()
        self.ln1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, heads, dropout)
        self.ln2 = nn.LayerNorm(d_model)
        self.mlp = Mlp(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attn(self.ln1(x)))
        return x + self.dropout(self.mlp(self.ln2(x)))


class Gpt(nn.Module):
    def __init__(self, d_model=64, layers=2, heads=4, context=64, dropout=0.1):
        super().__init__()
        self.context = context
        self.tok_emb = nn.Embedding(VOCABULARY, d_model)
        self.pos_emb = nn.Embedding(context, d_model)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(d_model, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d_model)
        nn.init.normal_(self.tok_emb.weight, std=0.02)
        nn.init.normal_(self.pos_emb.weight, std=0.02)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1])
        x = self.dropout(self.tok_emb(tokens) + self.pos_emb(positions))
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x) @ self.tok_emb.weight.T

    @torch.no_grad()
    def sample(self, start: str, length: int) -> str:
        """`length` more characters after `start`."""
        self.eval()
        tokens = list(start.encode("ascii"))
        for _ in range(length):
            logits = self(torch.tensor([tokens[-self.context :]]))[0, -1]
            tokens.append(int(torch.multinomial(F.softmax(logits, dim=-1), 1)))
        return bytes(tokens).decode("ascii")
