"""Normalisation layers: LayerNorm and RMSNorm with one interface."""

from __future__ import annotations

import numpy as np

from .shared import Shared


class Norm:
    """LayerNorm or RMSNorm, as config.norm says. Keeps the output and each row's statistics for backward."""

    def __init__(self, shared: Shared, name: str) -> None:
        self._backend, config, workspace = shared.backend, shared.config, shared.workspace
        self._is_rms = config.norm == "rms_norm"
        self._eps = config.norm_eps
        parameters, bias = shared.parameters, f"{name}.bias"
        self.weight = parameters.operand(f"{name}.weight")
        self.bias = parameters.operand(bias) if bias in parameters else shared.backend.no_row
        self.dweight, self.dbias = shared.gradient(f"{name}.weight"), shared.gradient(f"{name}.bias")
        self.out = workspace.rows("norm", config.width)
        self.mean = workspace.rows("norm mean", None)
        self.rstd = workspace.rows("norm rstd", None)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The normalised rows of x (N, C), valid until the model's next norm; where activations are kept, until the
        next forward."""
        k, out = self._backend.kernels, self.out.array
        if self._is_rms:
            k.rms_norm_forward(out, self.rstd.array, x, self.weight, self._eps)
        else:
            k.layernorm_forward(out, self.mean.array, self.rstd.array, x, self.weight, self.bias, self._eps)
        return out

    def backward(self, dx: np.ndarray, dout: np.ndarray, x: np.ndarray, dresidual: np.ndarray | None = None) -> None:
        """dx (N, C) from dout (N, C) and forward's x, plus dresidual if given (it may be dx itself)."""
        b, k = self._backend, self._backend.kernels
        added = b.no_matrix if dresidual is None else dresidual
        if self._is_rms:
            k.rms_norm_backward(dx, self.dweight, dout, x, self.weight, self.rstd.array, added, b.rms_partials)
        else:
            k.layernorm_backward(
                dx, self.dweight, self.dbias, dout, x, self.weight, self.mean.array, self.rstd.array, added, b.partials
            )
