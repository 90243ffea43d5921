"""Dropout at one place of the model, with masks that follow from the step's seed and the place's number."""

from __future__ import annotations

import numpy as np

from .backend import Backend
from .batch import Batch


class Dropout:
    """Zeroes elements with a probability, in training only. Nothing is kept: backward draws the mask again. A part of
    a batch has the random numbers that its rows have in the whole.

    site  number of this place: its random numbers begin at site * 2^40
    """

    def __init__(self, backend: Backend, probability: float, site: int) -> None:
        self._backend = backend
        self.probability = probability
        self._offset = site << 40

    def is_on(self, batch: Batch) -> bool:
        """Whether this batch's rows are dropped at all."""
        return self.probability > 0 and batch.dropout is not None

    def forward(self, out: np.ndarray, x: np.ndarray, batch: Batch) -> None:
        """out (N, C) = x without some elements; out may be x, and is, where nothing is dropped."""
        if self.is_on(batch):
            self._backend.kernels.dropout_forward(out, x, self.probability, batch.dropout, self._offset)

    def backward(self, out: np.ndarray, dout: np.ndarray, batch: Batch) -> np.ndarray:
        """dout as it was before the drop: written to `out`, or dout itself where nothing is dropped."""
        if not self.is_on(batch):
            return dout
        self._backend.kernels.dropout_backward(out, dout, self.probability, batch.dropout, self._offset)
        return out
