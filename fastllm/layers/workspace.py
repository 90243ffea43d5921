"""Memory for activations: allocated once for the largest batch so far; each batch gets views of it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import DTypeLike

from ..memory import Place, aligned


class Rows:
    """One activation. `array` has a row for each row of the current batch: (N, width), or (N,) if width is None."""

    __slots__ = ("_whole", "array", "dtype", "width")

    def __init__(self, width: int | None, dtype: DTypeLike) -> None:
        self.width = width
        self.dtype = np.dtype(dtype)
        self._whole = self._take(0)
        self.array: np.ndarray = self._whole

    def has(self, rows: int) -> bool:
        """Whether there is memory for this many rows."""
        return rows <= len(self._whole)

    def show(self, rows: int, most: int) -> None:
        """Let `array` have `rows` rows. If there is too little memory, allocate it for `most` rows."""
        if not self.has(rows):
            self.give_back()
            self._whole = self._take(most)
        self.array = self._whole[:rows]

    def give_back(self) -> None:
        """Free the memory."""
        self.array = self._whole = self._take(0)

    def show_in(self, other: Rows) -> None:
        """Let `array` have as many rows as another activation, which is as wide or wider, and share its memory."""
        if self.width == other.width:
            self.array = other.array
        else:
            assert self.width is not None
            rows = len(other.array)
            self.array = other._whole.reshape(-1)[: rows * self.width].reshape(rows, self.width)

    def _take(self, rows: int) -> np.ndarray:
        return aligned(rows if self.width is None else (rows, self.width), self.dtype)


class Workspace:
    """All activations of a model. Layers ask for theirs when they are made; the model sets the batch's rows.

    Backward needs what forward left in each layer. Where no backward follows, activations of the same name share memory
    and are used in turn, so that memory does not grow with the number of layers.
    """

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self._kept: dict[str, list[Rows]] = {}
        self._shared: dict[str, list[Rows]] = {}
        self._all: list[Rows] = []
        self._most = 0
        self.place = Place()
        self.recordings: WeakKeyDictionary[Place, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()  # see recording.py
        self._shown = (0, False)

    def rows(self, name: str, width: int | None, dtype: DTypeLike | None = None) -> Rows:
        """An activation that forward keeps for backward.

        width  columns; None: one number a row
        name   where no backward follows, activations of the same name share memory: writing one overwrites the others
        """
        return self._add(self._kept, name, Rows(width, dtype or self.dtype))

    def shared(self, name: str, width: int | None) -> Rows:
        """Scratch of backward, which all activations of the same name share: writing one overwrites the others."""
        return self._add(self._shared, name, Rows(width, self.dtype))

    def _add(self, groups: dict[str, list[Rows]], name: str, rows: Rows) -> Rows:
        self._all.append(rows)
        group = groups.setdefault(name, [])
        is_widest = bool(group) and (rows.width or 1) > (group[0].width or 1)
        group.insert(0 if is_widest else len(group), rows)
        return rows

    def resize(self, rows: int, keep: bool) -> None:
        """Let every activation have this many rows; memory is allocated only for the largest batch so far.

        keep  for a backward to come: each layer has memory of its own
        """
        if self._shown == (rows, keep):
            return
        self._shown = (0, False)  # until all of them do: Ctrl-C or a full memory may come in between
        before, self._most = self._most, max(self._most, rows)
        try:
            for group in self._kept.values():
                self._show(group, rows, is_apart=keep)
            if keep:
                for group in self._shared.values():
                    self._show(group, rows, is_apart=False)
        except MemoryError:
            self._most = before
            self.recordings.clear()
            for activation in self._all:  # a smaller batch is to find all the room that there is
                activation.give_back()
            raise
        self._shown = (rows, keep)

    def _show(self, group: list[Rows], rows: int, is_apart: bool) -> None:
        widest, *others = group
        if not all(activation.has(rows) for activation in (group if is_apart else (widest,))):
            self.recordings.clear()  # they hold on to the memory that is given back now
        widest.show(rows, self._most)
        for activation in others:
            if is_apart:
                activation.show(rows, self._most)
            else:
                activation.show_in(widest)

    @property
    def nbytes(self) -> int:
        """Bytes taken for activations."""
        return sum(activation._whole.nbytes for activation in self._all)
