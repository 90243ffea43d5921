"""Multi-head causal self-attention with grouped key/value heads."""

from __future__ import annotations

import numpy as np

from ..config import ModelConfig
from ..parameters import Parameters
from .backend import Backend
from .batch import Batch
from .linear import Linear
from .rotary import RopeTables
from .workspace import Workspace


class Attention:
    """qkv = x W; positions by rotation if RoPE; out = attention(qkv) W_o, or without W_o."""

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        layer: int,
        angles: RopeTables | None,
    ) -> None:
        assert config.head_size is not None and config.kv_heads is not None
        self._backend = backend
        self._layer = layer
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.scale = config.head_size**-0.5
        name = f"blocks.{layer}.attention"
        self.qkv_map = Linear(backend, parameters, gradients, f"{name}.query", f"{name}.key", f"{name}.value")
        self.output_map = Linear(backend, parameters, gradients, f"{name}.output") if config.attention_output else None
        self.angles = angles
        self._interleaved = config.rope_interleaved
        mixed = config.heads * config.head_size
        self.qkv = workspace.rows(config.qkv_width)
        self.mixed = workspace.rows(mixed)
        self.lse = workspace.rows(config.heads)
        self._dqkv = workspace.shared("dqkv", config.qkv_width)
        self._dmixed = workspace.shared("dmixed", mixed)

    def forward(self, out: np.ndarray, x: np.ndarray, residual: np.ndarray | None, batch: Batch) -> None:
        """out (N, C) from x (N, C), plus residual (N, C) if given. Keeps keys and values in batch.cache."""
        b, k = self._backend, self._backend.kernels
        qkv, mixed = self.qkv.array, self.mixed.array
        self.qkv_map.forward(qkv, x)
        if self.angles:
            k.rope_forward(qkv, *self.angles, batch.positions, self.heads + self.kv_heads, self._interleaved)
        cache = batch.cache
        if cache is not None:
            keys, values = cache.keys[self._layer], cache.values[self._layer]
            k.kv_cache_write(keys, values, qkv, batch.slots, batch.positions, self.heads, self.kv_heads)
        if cache is not None and batch.is_decode:
            k.attention_decode(mixed, qkv, keys, values, cache.lengths, self.heads, self.kv_heads, self.scale)
        else:
            k.attention_forward(
                mixed, self.lse.array, qkv, batch.starts, self.heads, self.kv_heads, self.scale, b.attention_scratch
            )
        if self.output_map:
            self.output_map.forward(out, mixed, residual)
        elif residual is not None:
            k.add(out, mixed, residual)
        else:
            out[...] = mixed

    def backward(
        self, dx: np.ndarray, dout: np.ndarray, x: np.ndarray, dresidual: np.ndarray | None, batch: Batch
    ) -> None:
        """dx (N, C) from dout (N, C) and forward's x, plus dresidual if given."""
        b, k = self._backend, self._backend.kernels
        dqkv, dmixed = self._dqkv.array, dout
        if self.output_map:
            dmixed = self._dmixed.array
            self.output_map.backward(dmixed, dout, self.mixed.array, accumulate=batch.accumulate)
        k.attention_backward(
            dqkv, dmixed, self.mixed.array, self.lse.array, self.qkv.array, batch.starts,
            self.heads, self.kv_heads, self.scale, b.attention_scratch,
        )  # fmt: skip
        if self.angles:
            k.rope_backward(dqkv, *self.angles, batch.positions, self.heads + self.kv_heads, self._interleaved)
        self.qkv_map.backward(dx, dqkv, x, dresidual, batch.accumulate)
