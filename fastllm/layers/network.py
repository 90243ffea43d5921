"""A model's layers in their order: embedding -> blocks -> final norm -> head, and back."""

from __future__ import annotations

import threading

import numpy as np

from ..config import STEP_ROWS
from ..parameters import count_parameters
from .batch import Batch
from .block import Block
from .embedding import Embedding
from .head import Head
from .norm import Norm
from .recording import Recordings
from .rotary import Rotary
from .score import Score
from .shared import Shared

# Most floating-point operations of a pass that is replayed without Python (see recording.py). In a larger one the
# layers' Python costs next to nothing; and Ctrl-C, which otherwise works between two kernels, would wait for them all.
SMALL = 100_000_000_000


class Network:
    """The layers, with views of parameters and gradients; their activations are in the workspace."""

    def __init__(self, shared: Shared, rotary: Rotary | None) -> None:
        config, backend, workspace = shared.config, shared.backend, shared.workspace
        self.workspace = workspace
        self.embedding = Embedding(shared)
        self.blocks = [Block(shared, layer, rotary) for layer in range(config.layers)]
        self.final_norm = Norm(shared, "final_norm") if config.final_norm else None
        self.head = Head(shared)
        self._dstream = workspace.shared("dstream", config.width)
        self._dnormed = workspace.shared("dnormed", config.width)
        self._rotary = rotary
        self._recordings = Recordings(backend, workspace)
        self._is_recorded = backend.name == "numba"
        self._small_rows = SMALL // (2 * count_parameters(config))  # forward; backward takes twice as many again

    def forward(self, batch: Batch, keep: bool = False) -> np.ndarray:
        """Rows (N, C), the head's input.

        keep  each layer keeps the activations that backward needs; else layers share memory
        """
        if batch.is_decode and self._is_recorded and len(batch.tokens) <= STEP_ROWS:
            assert batch.cache is not None
            return self._recordings.run(batch.cache.place, self._angles, batch, self._forward)
        if self._is_recorded and len(batch.tokens) <= self._small_rows and threading.active_count() > 1:
            return self._recordings.run_at_once(lambda: self._forward(batch, keep))
        return self._forward(batch, keep)

    def score(self, batch: Batch) -> Score:
        """Forward of a batch, at least one of whose tokens has a target."""
        return Score.of(*self.head.score(self.forward(batch), batch))

    def score_and_gradients(self, batch: Batch, normalizer: float) -> Score:
        """As score; also computes the gradients of sum(losses) / normalizer."""

        def compute(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
            return self._forward_and_backward(batch, normalizer)

        if not self._is_recorded or 3 * len(batch.tokens) > self._small_rows:
            return Score.of(*compute(batch))
        key = normalizer, batch.accumulate, batch.dropout is None, self._angles
        return Score.of(*self._recordings.run(self.workspace.place, key, batch, compute))

    @property
    def _angles(self) -> int | None:
        """How many positions have angles. Part of a recording's key: it reads the tables of its time."""
        return None if self._rotary is None else self._rotary.positions

    def _forward(self, batch: Batch, keep: bool = False) -> np.ndarray:
        self._streams: list[np.ndarray] = []  # before each block, and behind the last
        self.workspace.resize(len(batch.tokens), keep)
        x = self.embedding.forward(batch)
        for block in self.blocks:
            self._streams.append(x)
            x = block.forward(x, batch)
        self._streams.append(x)
        return self.final_norm.forward(x) if self.final_norm else x

    def _forward_and_backward(self, batch: Batch, normalizer: float) -> tuple[np.ndarray, np.ndarray]:
        """Losses (P,) of the batch's targets, and whether each had the largest logit."""
        out = self._forward(batch, keep=True)
        dstream = self._dstream.array
        if self.final_norm:
            results = self.head.score_and_gradients(self._dnormed.array, out, batch, normalizer)
            self.final_norm.backward(dstream, self._dnormed.array, self._streams[-1])
        else:
            results = self.head.score_and_gradients(dstream, out, batch, normalizer)
        for i in reversed(range(len(self.blocks))):
            self.blocks[i].backward(dstream, self._streams[i], batch)
        self.embedding.backward(dstream, batch)
        return results
