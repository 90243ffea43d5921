"""The head: from rows to logits, and from logits to the loss, a chunk of rows at a time."""

from __future__ import annotations

import numpy as np

from ..memory import aligned
from .linear import Linear
from .score import Score
from .shared import Shared

# Logits in memory at once: 64 MB. Each chunk reads the whole weight, so chunks should have hundreds of rows.
CHUNK_LOGITS = 2**24


class Head:
    """logits = x weight.T + bias, where weight may be the token embedding's (tied)."""

    def __init__(self, shared: Shared) -> None:
        backend, config, workspace = shared.backend, shared.config, shared.workspace
        self._kernels = backend.kernels
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
        """Logits (N, V) of a few rows x (N, C), each the same alone: a fresh array."""
        out = aligned((len(x), self._vocabulary), x.dtype)
        self.map.forward(out, x, is_decode=True)
        return out

    def score(self, x: np.ndarray, targets: np.ndarray) -> Score:
        """Loss and right answers over the rows of x (N, C) with a target >= 0."""
        rows, picked, wanted = self._pick(x, targets)
        losses, correct = self._losses.array, self._correct.array
        for chunk, logits in self._chunks(len(rows)):
            self.map.forward(logits, picked[chunk])
            self._kernels.cross_entropy_forward(losses[chunk], correct[chunk], logits, wanted[chunk])
        return self._sum(len(rows))

    def score_and_gradients(
        self, dx: np.ndarray, x: np.ndarray, targets: np.ndarray, normalizer: float, accumulate: bool
    ) -> Score:
        """As score, and the gradients of sum of losses / normalizer.

        dx (N, C) is overwritten, the weight's gradient added to or, unless accumulate, overwritten
        """
        rows, picked, wanted = self._pick(x, targets)
        is_all = len(rows) == len(x)
        dpicked = dx if is_all else self._dpicked.array[: len(rows)]
        losses, correct = self._losses.array, self._correct.array
        for chunk, logits in self._chunks(len(rows)):
            self.map.forward(logits, picked[chunk])
            self._kernels.cross_entropy_forward_backward(
                losses[chunk], correct[chunk], logits, logits, wanted[chunk], 1.0 / normalizer
            )
            self.map.backward(dpicked[chunk], logits, picked[chunk], accumulate=accumulate or chunk.start > 0)
        if not is_all:
            self._kernels.scatter_rows(dx, dpicked, rows)
        return self._sum(len(rows))

    def _pick(self, x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the rows with a target, those rows, and their targets."""
        rows = np.flatnonzero(targets >= 0).astype(np.int32)
        if len(rows) == len(x):
            return rows, x, targets
        picked = self._picked.array[: len(rows)]
        self._kernels.gather_rows(picked, x, rows)
        return rows, picked, targets[rows]

    def _chunks(self, rows: int) -> list[tuple[slice, np.ndarray]]:
        """Slices of the rows, each with room for its logits."""
        needed = min(rows, self._chunk)
        if len(self._logits) < needed:
            self._logits = aligned((needed, self._vocabulary), self._logits.dtype)
        return [
            (slice(start, min(rows, start + self._chunk)), self._logits[: min(rows - start, self._chunk)])
            for start in range(0, rows, self._chunk)
        ]

    def _sum(self, rows: int) -> Score:
        total = float(self._losses.array[:rows].sum(dtype=np.float64))
        return Score(total, int(self._correct.array[:rows].sum()), rows)
