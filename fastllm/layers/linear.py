"""Linear layer: out = x @ weight.T + bias, the residual stream added on the way, and low-rank additions."""

from __future__ import annotations

import numpy as np

from ..config import STEP_ROWS
from ..packed import Packed
from ..parameters import Parameters
from .shared import Shared

MATRICES = 3  # the packed kernels take this many matrices together


class Linear:
    """One affine map, or several of the same input side by side (query, key and value; gate and up).

    names  the parameters' names without ".weight"; their outputs are stacked in this order
    """

    def __init__(self, shared: Shared, *names: str) -> None:
        self._backend, parameters, gradients = shared.backend, shared.parameters, shared.gradients
        weights, biases = [f"{name}.weight" for name in names], [f"{name}.bias" for name in names]
        has_bias = biases[0] in parameters
        self.bias = self.dbias = self._backend.no_row
        self.weight: np.ndarray | None = None
        self.dweight: np.ndarray | None = None
        if isinstance(parameters, Parameters):
            self.weight = parameters.joined(*weights)
            if has_bias:
                self.bias = parameters.joined(*biases)
            if gradients is not None:
                self.dweight = gradients.joined(*weights)
                if has_bias:
                    self.dbias = gradients.joined(*biases)
        elif has_bias:
            self.bias = np.concatenate([parameters[name] for name in biases]).astype(self._backend.dtype)
        self._has_packed = self.weight is None or self._backend.dtype == np.float32
        outputs = []
        if self._has_packed:
            matrices = [parameters.packed(name) for name in weights]
            self._packed = _three(matrices)
            self._backend.reserve(matrices[0].shape[1])
            outputs = [matrix.shape[0] for matrix in matrices]
        self._additions = [
            LowRank(shared, name, first=sum(outputs[:i]))
            for i, name in enumerate(names)
            if shared.adapter is not None and f"{name}.lora_a" in shared.adapter
        ]

    def forward(
        self, out: np.ndarray, x: np.ndarray, residual: np.ndarray | None = None, is_decode: bool = False
    ) -> None:
        """out (N, O) from x (N, I), plus residual (N, O) if given.

        is_decode  a few rows (up to 32): each result has the same bits whatever the other rows are
        """
        b = self._backend
        added = b.no_matrix if residual is None else residual
        if is_decode and len(x) <= STEP_ROWS and self._has_packed:
            b.kernels.packed_rows_forward(out, x, *self._packed, self.bias, added, b.packed_scratch)
        elif self.weight is None:
            b.kernels.packed_forward(out, x, *self._packed, self.bias, added, b.packed_scratch)
        else:
            b.kernels.linear_forward(out, x, self.weight, self.bias, added, b.matmul_scratch)
        for addition in self._additions:
            addition.forward(out, x)

    def backward(
        self,
        dx: np.ndarray,
        dout: np.ndarray,
        x: np.ndarray,
        residual: np.ndarray | None = None,
        accumulate: bool = True,
    ) -> None:
        """dx (N, I) from dout (N, O) and forward's x (N, I), plus residual (N, I) if given.

        accumulate  the gradients of weight and bias are added to what is there, else they take its place; weights that
                    are not trained have none
        """
        b = self._backend
        added = b.no_matrix if residual is None else residual
        if self.dweight is None:
            b.kernels.packed_backward(dx, dout, *self._packed, added, b.packed_scratch)
        else:
            b.kernels.linear_backward(
                dx, self.dweight, self.dbias, dout, x, self.weight, added, accumulate, b.matmul_scratch
            )
        for addition in self._additions:
            addition.backward(dx, dout, x)


class LowRank:
    """out += scale * x @ a.T @ b.T, in the columns from `first` on: what LoRA trains beside a linear map."""

    def __init__(self, shared: Shared, name: str, first: int) -> None:
        assert shared.adapter is not None
        self._backend, self._first = shared.backend, first
        names = f"{name}.lora_a", f"{name}.lora_b"
        self.weights = [shared.adapter[weight] for weight in names]
        self.scale = shared.adapter.additions[name].scale
        gradients = shared.adapter_gradients
        self._gradients = [] if gradients is None else [gradients[weight] for weight in names]
        rank = len(self.weights[0])
        self._hidden = shared.workspace.rows(f"hidden of {name.partition('.')[2].partition('.')[2]}", rank)
        self._dhidden = shared.workspace.shared("dhidden", rank)

    def forward(self, out: np.ndarray, x: np.ndarray) -> None:
        """Add to out (N, W) from x (N, I)."""
        b = self._backend
        b.kernels.lora_forward(out, self._hidden.array, x, *self.weights, self._first, self.scale, b.matmul_scratch)

    def backward(self, dx: np.ndarray, dout: np.ndarray, x: np.ndarray) -> None:
        """Add to dx (N, I) and the gradients of a and b, from dout (N, W) and forward's x."""
        b = self._backend
        b.kernels.lora_backward(
            dx, *self._gradients, self._dhidden.array, dout, self._hidden.array, x, *self.weights, self._first,
            self.scale, b.matmul_scratch,
        )  # fmt: skip


def _three(matrices: list[Packed]) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """The matrices' bytes and the numbers of their kinds, as the kernels take them."""
    missing = MATRICES - len(matrices)
    data = [read_only(matrix.data) for matrix in matrices] + [read_only(np.empty((0, 0), np.uint8))] * missing
    return tuple(data), (*[matrix.kind.number for matrix in matrices], *[0] * missing)


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view, such as arrays of files are: then kernels are compiled for one kind of array only."""
    view = array.view()
    view.flags.writeable = False
    return view
