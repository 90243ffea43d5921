"""Memory for activations: taken once for the largest batch seen, viewed for each batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ..memory import aligned


class Rows:
    """One activation. `array` has a row for each row of the current batch: (N, width), or (N,) if width is None."""

    __slots__ = ("_whole", "array", "dtype", "width")

    def __init__(self, width: int | None, dtype: DTypeLike) -> None:
        self.width = width
        self.dtype = np.dtype(dtype)
        self.reserve(0)
        self.array: np.ndarray = self._whole

    def reserve(self, rows: int) -> None:
        self._whole = aligned(rows if self.width is None else (rows, self.width), self.dtype)

    def show(self, rows: int) -> None:
        self.array = self._whole[:rows]


class Workspace:
    """All activations of a model. Layers ask for theirs when they are made; the model sets the batch's rows."""

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self._all: list[Rows] = []
        self._shared: dict[tuple[str, int | None], Rows] = {}
        self._capacity = 0
        self._rows = 0

    def rows(self, width: int | None, dtype: DTypeLike | None = None) -> Rows:
        """An activation of the caller's own: what forward keeps for backward."""
        rows = Rows(width, dtype or self.dtype)
        self._all.append(rows)
        return rows

    def shared(self, name: str, width: int | None) -> Rows:
        """Scratch that all who give the same name and width share: valid until the next of them writes."""
        key = (name, width)
        if key not in self._shared:
            self._shared[key] = self.rows(width)
        return self._shared[key]

    def resize(self, rows: int) -> None:
        """Let every activation show so many rows; memory is taken only when a batch is the largest so far."""
        if rows == self._rows:
            return
        if rows > self._capacity:
            for activation in self._all:
                activation.reserve(rows)
            self._capacity = rows
        for activation in self._all:
            activation.show(rows)
        self._rows = rows

    @property
    def nbytes(self) -> int:
        """Bytes taken for activations."""
        return sum(activation._whole.nbytes for activation in self._all)
