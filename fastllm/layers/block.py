"""A transformer block: attention, then feed-forward, each on a branch beside the residual stream.

pre-norm   x = x + attention(norm(x));    x = x + feed_forward(norm(x))      (GPT-2, Llama)
post-norm  x = norm(x + attention(x));    x = norm(x + feed_forward(x))      (Vaswani et al. 2017)
"""

from __future__ import annotations

import numpy as np

from .attention import Attention
from .batch import Batch
from .dropout import Dropout
from .feed_forward import FeedForward
from .norm import Norm
from .rotary import Rotary
from .shared import Shared


class Block:
    """One block. `middle` and `end` are the residual stream after attention and after feed-forward."""

    def __init__(self, shared: Shared, layer: int, rotary: Rotary | None) -> None:
        backend, config, workspace = shared.backend, shared.config, shared.workspace
        self._backend = backend
        self._is_pre = config.norm_position == "pre"
        self.attention_norm = Norm(shared, f"blocks.{layer}.attention_norm")
        self.attention = Attention(shared, layer, rotary)
        self.feed_forward_norm = Norm(shared, f"blocks.{layer}.feed_forward_norm")
        self.feed_forward = FeedForward(shared, layer)
        self.attention_dropout = Dropout(backend, config.dropout, site=2 * layer + 1)
        self.feed_forward_dropout = Dropout(backend, config.dropout, site=2 * layer + 2)
        self.middle = workspace.rows("middle", config.width)
        self.end = workspace.rows("stream", config.width)
        self._dbranch = workspace.shared("dbranch", config.width)
        self._dropped = workspace.shared("ddropped", config.width)

    def forward(self, x: np.ndarray, batch: Batch) -> np.ndarray:
        """The stream after this block, from the stream x (N, C) before it; x must stay for backward."""
        middle, end = self.middle.array, self.end.array
        if self._is_pre:
            self._branch(middle, self.attention, self.attention_dropout, self.attention_norm.forward(x), x, batch)
            normed = self.feed_forward_norm.forward(middle)
            self._branch(end, self.feed_forward, self.feed_forward_dropout, normed, middle, batch)
            return end
        self._branch(middle, self.attention, self.attention_dropout, x, x, batch)
        normed = self.attention_norm.forward(middle)
        self._branch(end, self.feed_forward, self.feed_forward_dropout, normed, normed, batch)
        return self.feed_forward_norm.forward(end)

    def backward(self, dstream: np.ndarray, x: np.ndarray, batch: Batch) -> None:
        """Turn dstream (N, C) from the gradient after this block into that before it, in place."""
        dbranch, dropped = self._dbranch.array, self._dropped.array
        if self._is_pre:
            dout = self.feed_forward_dropout.backward(dropped, dstream, batch)
            self.feed_forward.backward(dbranch, dout, self.feed_forward_norm.out.array, None, batch)
            self.feed_forward_norm.backward(dstream, dbranch, self.middle.array, dstream)
            dout = self.attention_dropout.backward(dropped, dstream, batch)
            self.attention.backward(dbranch, dout, self.attention_norm.out.array, None, batch)
            self.attention_norm.backward(dstream, dbranch, x, dstream)
            return
        self.feed_forward_norm.backward(dbranch, dstream, self.end.array)
        dout = self.feed_forward_dropout.backward(dropped, dbranch, batch)
        self.feed_forward.backward(dstream, dout, self.attention_norm.out.array, dbranch, batch)
        self.attention_norm.backward(dbranch, dstream, self.middle.array)
        dout = self.attention_dropout.backward(dropped, dbranch, batch)
        self.attention.backward(dstream, dout, x, dbranch, batch)

    def _branch(
        self, out: np.ndarray, layer: Attention | FeedForward, dropout: Dropout, x: np.ndarray, residual: np.ndarray,
        batch: Batch,
    ) -> None:  # fmt: skip
        """out = residual + dropout(layer(x)); without dropout the sum rides along in the product."""
        if dropout.is_on(batch):
            dropout.forward(out, layer.forward(out, x, None, batch), batch)
            self._backend.kernels.add(out, out, residual)
        else:
            layer.forward(out, x, residual, batch)
