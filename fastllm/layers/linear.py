"""Linear layer: out = x @ weight.T + bias, the residual stream added on the way."""

from __future__ import annotations

import numpy as np

from ..parameters import Parameters
from .backend import Backend


class Linear:
    """One affine map, or several of the same input side by side (query, key and value; gate and up).

    names  the parameters' names without ".weight"; their outputs are stacked in this order
    """

    def __init__(self, backend: Backend, parameters: Parameters, gradients: Parameters, *names: str) -> None:
        self._backend = backend
        weights = [f"{name}.weight" for name in names]
        self.weight, self.dweight = parameters.joined(*weights), gradients.joined(*weights)
        if f"{names[0]}.bias" in parameters:
            biases = [f"{name}.bias" for name in names]
            self.bias, self.dbias = parameters.joined(*biases), gradients.joined(*biases)
        else:
            self.bias = self.dbias = backend.no_row

    def forward(self, out: np.ndarray, x: np.ndarray, residual: np.ndarray | None = None) -> None:
        """out (N, O) from x (N, I), plus residual (N, O) if given."""
        b = self._backend
        added = b.no_matrix if residual is None else residual
        b.kernels.linear_forward(out, x, self.weight, self.bias, added, b.matmul_scratch)

    def backward(
        self,
        dx: np.ndarray,
        dout: np.ndarray,
        x: np.ndarray,
        residual: np.ndarray | None = None,
        accumulate: bool = True,
    ) -> None:
        """dx (N, I) from dout (N, O) and forward's x (N, I), plus residual (N, I) if given.

        accumulate  the gradients of weight and bias are added to what is there, else they take its place
        """
        b = self._backend
        added = b.no_matrix if residual is None else residual
        b.kernels.linear_backward(
            dx, self.dweight, self.dbias, dout, x, self.weight, added, accumulate, b.matmul_scratch
        )
