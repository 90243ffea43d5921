"""The position-wise feed-forward layer: up, activation (or gate), down."""

from __future__ import annotations

import numpy as np

from .batch import Batch
from .linear import Linear
from .shared import Shared


class FeedForward:
    """out = activation(x W_up.T) W_down.T, or with swiglu (silu(x W_gate.T) * (x W_up.T)) W_down.T; plus biases.

    x and out are (N, C), W_up and W_gate (F, C), W_down (C, F).
    """

    def __init__(self, shared: Shared, layer: int) -> None:
        config, workspace = shared.config, shared.workspace
        name = f"blocks.{layer}.feed_forward"
        self._backend = shared.backend
        inner = (f"{name}.gate", f"{name}.up") if config.activation == "swiglu" else (f"{name}.up",)
        self.up = Linear(shared, *inner)
        self.down = Linear(shared, f"{name}.down")
        self._names = f"{config.activation}_forward", f"{config.activation}_backward"
        before = config.hidden * len(inner)
        self.before = workspace.rows("inner", before)
        self.after = workspace.rows("inner output", config.hidden)
        self._dbefore = workspace.shared("d_inner", before)
        self._dafter = workspace.shared("d_inner output", config.hidden)

    def forward(self, out: np.ndarray, x: np.ndarray, residual: np.ndarray | None, batch: Batch) -> np.ndarray:
        """out (N, C), which it returns, from x (N, C), plus residual (N, C) if given."""
        self.up.forward(self.before.array, x, is_decode=batch.is_decode)
        getattr(self._backend.kernels, self._names[0])(self.after.array, self.before.array)
        self.down.forward(out, self.after.array, residual, batch.is_decode)
        return out

    def backward(
        self, dx: np.ndarray, dout: np.ndarray, x: np.ndarray, dresidual: np.ndarray | None, batch: Batch
    ) -> None:
        """dx (N, C) from dout (N, C) and forward's x, plus dresidual if given."""
        dbefore, dafter = self._dbefore.array, self._dafter.array
        self.down.backward(dafter, dout, self.after.array, accumulate=batch.accumulate)
        getattr(self._backend.kernels, self._names[1])(dbefore, dafter, self.before.array)
        self.up.backward(dx, dbefore, x, dresidual, batch.accumulate)
