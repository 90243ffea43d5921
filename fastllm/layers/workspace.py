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
        self._whole = self._take(0)
        self.array: np.ndarray = self._whole

    def show(self, rows: int, most: int) -> None:
        """Let `array` have so many rows; where memory is taken for them, it is for `most`."""
        if rows > len(self._whole):
            self._whole = self._take(most)
        self.array = self._whole[:rows]

    def _take(self, rows: int) -> np.ndarray:
        return aligned(rows if self.width is None else (rows, self.width), self.dtype)


class Workspace:
    """All activations of a model. Layers ask for theirs when they are made; the model sets the batch's rows.

    Backward needs what forward left in each layer. Where there is no backward, layers take turns: activations of one
    name show the same memory, so that it does not grow with the number of layers.
    """

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self._kept: dict[tuple[str, int | None], list[Rows]] = {}
        self._shared: dict[tuple[str, int | None], Rows] = {}
        self._most = 0
        self._shown = (0, False)

    def rows(self, name: str, width: int | None, dtype: DTypeLike | None = None) -> Rows:
        """An activation of the caller's own: what forward keeps for backward.

        name  of what it is, the same in all layers. One whose content goes on to the next layer must be read there
              before the next of the name is written
        """
        rows = Rows(width, dtype or self.dtype)
        self._kept.setdefault((name, width), []).append(rows)
        return rows

    def shared(self, name: str, width: int | None) -> Rows:
        """Scratch of backward that all who give the same name and width share: valid until the next of them writes."""
        return self._shared.setdefault((name, width), Rows(width, self.dtype))

    def resize(self, rows: int, keep: bool) -> None:
        """Let every activation show so many rows; memory is taken only when a batch is the largest so far.

        keep  for backward: each layer has its own
        """
        if self._shown == (rows, keep):
            return
        self._most = max(self._most, rows)
        for group in self._kept.values():
            first, *others = group
            first.show(rows, self._most)
            for activation in others:
                if keep:
                    activation.show(rows, self._most)
                else:
                    activation.array = first.array
        if keep:
            for activation in self._shared.values():
                activation.show(rows, self._most)
        self._shown = (rows, keep)

    @property
    def nbytes(self) -> int:
        """Bytes taken for activations."""
        kept = (activation for group in self._kept.values() for activation in group)
        return sum(activation._whole.nbytes for activation in (*kept, *self._shared.values()))
