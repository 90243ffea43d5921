"""Multi-head causal self-attention with grouped key/value heads."""

from __future__ import annotations

import numpy as np

from .batch import Batch
from .linear import Linear
from .rotary import Rotary
from .shared import Shared


class Attention:
    """qkv = x W.T + b; queries and keys normalised (qk_norm), then rotated (RoPE), if the model does; then

    out = attention(qkv) W_o.T + b_o

    x and out are (N, C), W is ((H + 2K) D, C) stacked from query, key and value, W_o is (C, H D).
    """

    def __init__(self, shared: Shared, layer: int, rotary: Rotary | None) -> None:
        backend, config, workspace = shared.backend, shared.config, shared.workspace
        assert config.head_size is not None and config.kv_heads is not None
        self._backend = backend
        self._layer = layer
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.scale = config.head_size**-0.5
        name = f"blocks.{layer}.attention"
        self.qkv_map = Linear(shared, f"{name}.query", f"{name}.key", f"{name}.value")
        self.output_map = Linear(shared, f"{name}.output") if config.attention_output else None
        self._rotary = rotary
        self._interleaved = config.rope_interleaved
        mixed = config.heads * config.head_size
        self.qkv = workspace.rows("inner", config.qkv_width)
        self.mixed = workspace.rows("inner output", mixed)
        self.lse = workspace.rows("lse", config.heads)
        self.norm = HeadNorm(shared, name) if config.qk_norm else None
        self._dqkv = workspace.shared("d_inner", config.qkv_width)
        self._dmixed = workspace.shared("d_inner output", mixed)
        self._dq_pieces = workspace.shared("dq, in pieces", backend.attention_pieces(mixed))

    def forward(self, out: np.ndarray, x: np.ndarray, residual: np.ndarray | None, batch: Batch) -> np.ndarray:
        """out (N, C) from x (N, C), plus residual (N, C) if given. Keeps keys and values in batch.cache.

        Returns out; with neither an output map nor a residual, the layer's own buffer, which holds the result already.
        """
        b, k = self._backend, self._backend.kernels
        qkv, mixed = self.qkv.array, self.mixed.array
        if self.norm:
            self.qkv_map.forward(self.norm.x.array, x, is_decode=batch.is_decode)
            self.norm.forward(qkv)
        else:
            self.qkv_map.forward(qkv, x, is_decode=batch.is_decode)
        sizes = self.heads, self.kv_heads
        if self._rotary:
            k.rope_forward(qkv, *self._rotary.tables, batch.positions, sum(sizes), self._interleaved)
        if batch.cache is None:
            k.attention_forward(mixed, self.lse.array, qkv, batch.starts, *sizes, self.scale, b.attention_scratch)
        else:
            keys, values = batch.cache.keys[self._layer], batch.cache.values[self._layer]
            pages = batch.cache.pages
            k.kv_cache_write(keys, values, qkv, batch.places, *sizes)
            if batch.is_decode:
                k.attention_decode(
                    mixed, qkv, keys, values, pages, batch.slots, batch.lengths, *sizes, self.scale,
                    b.decode_scratch(len(mixed), *sizes),
                )  # fmt: skip
            else:
                k.attention_prefill(
                    mixed, qkv, keys, values, pages, batch.slots, batch.starts, batch.before, *sizes, self.scale,
                    b.attention_scratch,
                )  # fmt: skip
        if self.output_map:
            self.output_map.forward(out, mixed, residual, batch.is_decode)
        elif residual is not None:
            k.add(out, mixed, residual)
        else:
            return mixed
        return out

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
            self.heads, self.kv_heads, self.scale, self._dq_pieces.array, b.attention_scratch,
        )  # fmt: skip
        if self._rotary:
            heads = self.heads + self.kv_heads
            k.rope_backward(dqkv, *self._rotary.tables, batch.positions, heads, self._interleaved)
        if self.norm:
            dqkv = self.norm.backward(dqkv)
        self.qkv_map.backward(dx, dqkv, x, dresidual, batch.accumulate)


class HeadNorm:
    """RMSNorm of each head's query and key. `x` (N, (H+2K)*D) is the input, kept for backward."""

    def __init__(self, shared: Shared, name: str) -> None:
        self._backend, config, workspace = shared.backend, shared.config, shared.workspace
        self._sizes = config.heads, config.kv_heads
        self._eps = config.norm_eps
        names = f"{name}.query_norm.weight", f"{name}.key_norm.weight"
        self._weights = [shared.parameters.operand(weight) for weight in names]
        self._dweights = [shared.gradient(weight) for weight in names]
        self.x = workspace.rows("unnormalised qkv", config.qkv_width)
        self.rstd = workspace.rows("head rstd", config.heads + config.kv_heads)  # type: ignore[operator]
        self._dx = workspace.shared("dunnormalised qkv", config.qkv_width)

    def forward(self, out: np.ndarray) -> None:
        """out (N, (H+2K)*D) from x."""
        kernels = self._backend.kernels
        kernels.head_norm_forward(out, self.rstd.array, self.x.array, *self._weights, *self._sizes, self._eps)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """The gradient with respect to x (N, (H+2K)*D); valid until the next layer writes its own there."""
        b, dx = self._backend, self._dx.array
        b.kernels.head_norm_backward(
            dx, *self._dweights, dout, self.x.array, *self._weights, self.rstd.array, *self._sizes, b.head_partials
        )
        return dx
