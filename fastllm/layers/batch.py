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
    targets    (P,)    int32; what is to come after each row, where there is a target
    scored     (P,)    int32; the rows that have one; None: all have
    cache      where keys and values are kept and attended to; None: sequences attend to themselves
    places     (N,)    int32; where the cache keeps each row's
    slots      the cache's slot of each sequence (S,) int32 or, if is_decode, of each row (N,)
    before     (S,)    int32; tokens in the slot before the sequence's
    is_decode  rows are new tokens, one after another: each attends by itself
    lengths    (N,)    int32; if is_decode, how many tokens of its slot a row sees
    dropout    (2,) uint64, the seed of this step's masks and `first`; None outside training
    first      number of the first row, where this is a part of a larger batch
    accumulate whether its gradients are added to what is there; else matrices' gradients take its place
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
        """Those that there are."""
        every = (
            self.tokens, self.starts, self.positions, self.targets, self.scored, self.places, self.slots, self.before,
            self.lengths, self.dropout,
        )  # fmt: skip
        return [array for array in every if array is not None]

    def copy(self) -> Batch:
        """The same with arrays of its own."""
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
        """Take the targets (N,) that are not below 0."""
        self.targets, self.scored = targets, None
        if targets.min() < 0:
            self.scored = np.flatnonzero(targets >= 0).astype(np.int32)
            self.targets = targets[self.scored]

    def parts(self, rows: int) -> Iterator[Batch]:
        """This batch in parts of whole sequences, of about equal size and no more than `rows` rows if they can be."""
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
