"""The head: from rows to logits, and from logits to the loss, a chunk of rows at a time."""

from __future__ import annotations

import numpy as np

from ..memory import aligned
from .batch import Batch
from .linear import Linear
from .shared import Shared

# Logits in memory at once: 64 MB. Each chunk reads the whole weight, so chunks should have hundreds of rows.
CHUNK_LOGITS = 2**24


class Head:
    """logits = x weight.T + bias, where weight may be the token embedding's (tied)."""

    def __init__(self, shared: Shared) -> None:
        backend, config, workspace = shared.backend, shared.config, shared.workspace
        self._backend, self._workspace = backend, workspace
        self.map = Linear(shared, "embedding.token" if config.tied_head else "head")
        if config.head_bias:
            self.map.bias = shared.parameters.operand("head.bias")
            self.map.dbias = shared.gradient("head.bias")
        self._vocabulary = config.vocab_size
        self._chunk = max(1, CHUNK_LOGITS // config.vocab_size)
        self._logits = np.empty((0, config.vocab_size), backend.dtype)
        self._picked = workspace.rows("picked", config.width)
        self._dpicked = workspace.shared("dpicked", config.width)
        self._losses = workspace.rows("losses", None)
        self._correct = workspace.rows("correct", None, np.int32)

    def forward(self, out: np.ndarray, x: np.ndarray) -> None:
        """out (N, V) = logits of rows x (N, C)."""
        self.map.forward(out, x)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits (N, V) of a few rows x (N, C), a new array; a row's bits do not depend on the other rows."""
        out = aligned((len(x), self._vocabulary), x.dtype)
        self.map.forward(out, x, is_decode=True)
        return out

    def score(self, x: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Loss of each of the batch's targets (P,), and whether it had the largest logit, from all rows x (N, C)."""
        picked, targets = self._pick(x, batch)
        losses, correct = self._results(len(targets))
        for chunk, logits in self._chunks(len(targets)):
            self.map.forward(logits, picked[chunk])
            self._backend.kernels.cross_entropy_forward(losses[chunk], correct[chunk], logits, targets[chunk])
        return losses, correct

    def score_and_gradients(
        self, dx: np.ndarray, x: np.ndarray, batch: Batch, normalizer: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """As score, and the gradients of sum of losses / normalizer.

        dx (N, C) is overwritten; so is the weight's gradient unless batch.accumulate, else it is added to.
        """
        k, (picked, targets) = self._backend.kernels, self._pick(x, batch)
        count = len(targets)
        dpicked = dx if batch.scored is None else self._dpicked.array[:count]
        losses, correct = self._results(count)
        for chunk, logits in self._chunks(count):
            self.map.forward(logits, picked[chunk])
            k.cross_entropy_forward_backward(
                losses[chunk], correct[chunk], logits, logits, targets[chunk], 1.0 / normalizer
            )
            accumulate = batch.accumulate or chunk.start > 0
            self.map.backward(dpicked[chunk], logits, picked[chunk], accumulate=accumulate)
        if batch.scored is not None:
            k.scatter_rows(dx, dpicked, batch.scored)
        return losses, correct

    def _pick(self, x: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The rows (P, C) that have a target, and the targets (P,)."""
        assert batch.targets is not None
        if batch.scored is None:
            return x, batch.targets
        picked = self._picked.array[: len(batch.scored)]
        self._backend.kernels.gather_rows(picked, x, batch.scored)
        return picked, batch.targets

    def _results(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self._losses.array[:count], self._correct.array[:count]

    def _chunks(self, rows: int) -> list[tuple[slice, np.ndarray]]:
        """Slices of the rows, each with an array (rows, V) for its logits."""
        needed = min(rows, self._chunk)
        if len(self._logits) < needed:
            self._workspace.recordings.clear()  # they hold on to the smaller one
            self._logits = aligned((needed, self._vocabulary), self._logits.dtype)
        return [
            (slice(start, min(rows, start + self._chunk)), self._logits[: min(rows - start, self._chunk)])
            for start in range(0, rows, self._chunk)
        ]
