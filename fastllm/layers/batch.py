"""What layers need to know of a batch beyond its rows: where sequences begin, where tokens stand."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .kv_cache import KVCache


@dataclass(slots=True)
class Batch:
    """Packed rows: the tokens of all sequences one after another.

    tokens     (N,)    int32
    starts     (S+1,)  int32; sequence s has rows starts[s] .. starts[s+1]-1
    positions  (N,)    int32; place of each token in its sequence
    targets    (P,)    int32; the token that should follow each row that has a target
    scored     (P,)    int32; the rows that have a target; None: all rows
    cache      where keys and values are kept and attended to; None: each sequence attends to itself only
    places     (N,)    int32; the place in the cache for each row's key and value (KVCache.places)
    slots      the cache's slot of each sequence (S,) int32 or, if is_decode, of each row (N,)
    before     (S,)    int32; how many tokens each sequence's slot holds already
    is_decode  each row is one new token, which attends to its slot's tokens so far
    lengths    (N,)    int32; if is_decode, how many tokens of its slot each row attends to, itself included
    dropout    (2,) uint64, the seed of this step's masks and `first`; None outside training
    first      number of the first row, where this is a part of a larger batch
    accumulate whether gradients are added to what is there; else the gradients of matrices overwrite it
    """

    tokens: np.ndarray
    starts: np.ndarray
    positions: np.ndarray
    targets: np.ndarray | None = None
    scored: np.ndarray | None = None
    cache: KVCache | None = None
    places: np.ndarray | None = None
    slots: np.ndarray | None = None
    before: np.ndarray | None = None
    is_decode: bool = False
    lengths: np.ndarray | None = None
    dropout: np.ndarray | None = None
    first: int = 0
    accumulate: bool = True

    @property
    def rows(self) -> slice:
        """Where this part's rows stand in the whole batch."""
        return slice(self.first, self.first + len(self.tokens))

    def arrays(self) -> list[np.ndarray]:
        """The arrays that are not None, always in the same order."""
        every = (
            self.tokens, self.starts, self.positions, self.targets, self.scored, self.places, self.slots, self.before,
            self.lengths, self.dropout,
        )  # fmt: skip
        return [array for array in every if array is not None]

    def copy(self) -> Batch:
        """A copy that shares no array with this one."""
        twin = copy(self)
        for field in fields(self):
            if isinstance(array := getattr(self, field.name), np.ndarray):
                setattr(twin, field.name, array.copy())
        return twin

    @property
    def target_count(self) -> int:
        """How many rows have a target."""
        return 0 if self.targets is None else len(self.targets)

    def set_targets(self, targets: np.ndarray) -> None:
        """Set `targets` and `scored` from targets (N,), of which those below 0 count as none."""
        self.targets, self.scored = targets, None
        if targets.min() < 0:
            self.scored = np.flatnonzero(targets >= 0).astype(np.int32)
            self.targets = targets[self.scored]

    def parts(self, rows: int) -> Iterator[Batch]:
        """This batch cut between sequences into parts of about equal size, each of at most `rows` rows.

        A longer sequence is a part by itself.
        """
        count = len(self.tokens)
        if count <= rows:
            yield self
            return
        most = -(-count // -(-count // rows))
        begin = 0
        while begin < len(self.starts) - 1:
            start = self.starts[begin]
            end = max(begin + 1, int(np.searchsorted(self.starts, start + most, side="right")) - 1)
            stop = self.starts[end]
            targets, scored = self.targets, self.scored
            if targets is not None:
                among = slice(start, stop) if scored is None else slice(*np.searchsorted(scored, (start, stop)))
                targets = targets[among]
                scored = None if scored is None else scored[among] - start
            yield Batch(
                self.tokens[start:stop],
                self.starts[begin : end + 1] - start,
                self.positions[start:stop],
                targets,
                scored,
                dropout=None if self.dropout is None else self.dropout + np.array([0, start], np.uint64),
                first=self.first + int(start),
            )
            begin = end
