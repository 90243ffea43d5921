"""The same models in PyTorch, as its users write them: nanoGPT's modules, with Llama's parts where a model has them.

Imported only in a contender's own process: nothing else here depends on PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu,
}  # fmt: skip
# Maps of ours that one module of theirs holds side by side, as in nanoGPT.
JOINED = {
    "attention.qkv": ("attention.query", "attention.key", "attention.value"),
    "feed_forward.up": ("feed_forward.gate", "feed_forward.up"),
}


def _norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rms_norm":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.norm_bias)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the halves of each head, as Hugging Face's Llama does it. x (B, H, T, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.kv_heads is not None and config.head_size is not None
        self.heads, self.kv_heads, self.size = config.heads, config.kv_heads, config.head_size
        self.qkv = nn.Linear(config.width, config.qkv_width, bias=config.attention_bias)
        mixed = self.heads * self.size
        self.output: nn.Module = nn.Identity()
        if config.attention_output:
            self.output = nn.Linear(mixed, config.width, bias=config.attention_output_bias)
        self.has_rope = config.positions == "rope"
        if self.has_rope:
            frequencies = config.rope_theta ** (-torch.arange(0, self.size, 2).double() / self.size)
            angles = torch.outer(torch.arange(config.context).double(), frequencies).repeat(1, 2)
            self.register_buffer("cos", angles.cos().float(), persistent=False)
            self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        widths = [self.heads * self.size, self.kv_heads * self.size, self.kv_heads * self.size]
        q, k, v = (part.view(rows, length, -1, self.size).transpose(1, 2) for part in self.qkv(x).split(widths, -1))
        if self.has_rope:
            cos, sin = self.cos[:length], self.sin[:length]
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads < self.heads)
        return self.output(mixed.transpose(1, 2).reshape(rows, length, -1))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        inner = config.hidden * (2 if config.activation == "swiglu" else 1)
        self.up = nn.Linear(config.width, inner, bias=config.feed_forward_bias)
        self.down = nn.Linear(config.hidden, config.width, bias=config.feed_forward_bias)

    def forward(self, x: Tensor) -> Tensor:
        before = self.up(x)
        if self.activation == "swiglu":
            gate, up = before.chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(ACTIVATIONS[self.activation](before))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_pre = config.norm_position == "pre"
        self.attention_norm, self.feed_forward_norm = _norm(config), _norm(config)
        self.attention, self.feed_forward = Attention(config), FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_pre:
            x = x + self.attention(self.attention_norm(x))
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + self.attention(x))
        return self.feed_forward_norm(x + self.feed_forward(x))


class Transformer(nn.Module):
    """forward gives the mean loss over targets that are not -1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = _norm(config) if config.final_norm else nn.Identity()
        self.head = nn.Linear(config.width, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)


def our_names(config: ModelConfig, name: str) -> tuple[str, ...]:
    """The names of our parameters that one of theirs holds, stacked in this order."""
    module, _, kind = name.rpartition(".")
    if module in ("tokens", "positions"):
        return (f"embedding.{module.removesuffix('s')}.{kind}",)
    block, _, part = module.partition(".attention.") if ".attention." in module else module.partition(".feed_forward.")
    inner = module[len(block) + 1 :] if part else ""
    if inner == "feed_forward.up" and config.activation != "swiglu":
        return (name,)
    return tuple(f"{block}.{ours}.{kind}" for ours in JOINED[inner]) if inner in JOINED else (name,)
