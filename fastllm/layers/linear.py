"""Linear layer: out = x @ weight.T + bias, the residual stream added on the way."""

from __future__ import annotations

import numpy as np

from ..packed import Packed
from ..parameters import FileParameters, Parameters
from .backend import Backend

ROWS_BY_DOTS = 32  # of a decoding step: up to so many, each has the same bits as alone
MATRICES = 3  # that the packed kernels take together

Store = Parameters | FileParameters


class Linear:
    """One affine map, or several of the same input side by side (query, key and value; gate and up).

    names      the parameters' names without ".weight"; their outputs are stacked in this order
    gradients  None where they are not wanted; weights that a file holds have none
    """

    def __init__(self, backend: Backend, parameters: Store, gradients: Parameters | None, *names: str) -> None:
        self._backend = backend
        weights, biases = [f"{name}.weight" for name in names], [f"{name}.bias" for name in names]
        self.dbias = backend.no_row
        self.bias = backend.no_row
        self.weight: np.ndarray | None = None
        if isinstance(parameters, Parameters):
            self.weight = parameters.joined(*weights)
            if biases[0] in parameters:
                self.bias = parameters.joined(*biases)
            if gradients is not None:
                self.dweight = gradients.joined(*weights)
                if biases[0] in parameters:
                    self.dbias = gradients.joined(*biases)
        elif biases[0] in parameters:
            self.bias = np.concatenate([parameters[name] for name in biases]).astype(backend.dtype)
        if self.weight is None or backend.dtype == np.float32:
            self._packed = _three([parameters.packed(name) for name in weights])
            backend.reserve(max(parameters.packed(name).shape[1] for name in weights))

    def forward(
        self, out: np.ndarray, x: np.ndarray, residual: np.ndarray | None = None, is_decode: bool = False
    ) -> None:
        """out (N, O) from x (N, I), plus residual (N, O) if given.

        is_decode  a few rows, each of which is to have the same bits whatever the others are
        """
        b = self._backend
        added = b.no_matrix if residual is None else residual
        if is_decode and len(x) <= ROWS_BY_DOTS and (self.weight is None or b.dtype == np.float32):
            b.kernels.packed_rows_forward(out, x, *self._packed, self.bias, added)
        elif self.weight is None:
            b.kernels.packed_forward(out, x, *self._packed, self.bias, added, b.packed_scratch)
        else:
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
        if self.weight is None:
            b.kernels.packed_backward(dx, dout, *self._packed, added, b.packed_scratch)
            return
        b.kernels.linear_backward(
            dx, self.dweight, self.dbias, dout, x, self.weight, added, accumulate, b.matmul_scratch
        )


def _three(matrices: list[Packed]) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """The matrices' bytes and the numbers of their kinds, as the kernels take them."""
    missing = MATRICES - len(matrices)
    data = [read_only(matrix.data) for matrix in matrices] + [read_only(np.empty((0, 0), np.uint8))] * missing
    return tuple(data), (*[matrix.kind.number for matrix in matrices], *[0] * missing)


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that nobody writes to, as those of files are: kernels are compiled for one sort of array."""
    view = array.view()
    view.flags.writeable = False
    return view
