"""Dropout at one place of the model, with masks that follow from the step's seed and the place's number."""

from __future__ import annotations

import numpy as np

from .backend import Backend
from .batch import Batch


class Dropout:
    """Zeroes elements at random, in training only. Nothing is kept: backward computes the same mask again. The rows
    of a part of a batch get the same random numbers as in the whole batch.

    site  number of this place: its random numbers begin at site * 2^40
    """

    def __init__(self, backend: Backend, probability: float, site: int) -> None:
        self._backend = backend
        self.probability = probability
        self._offset = site << 40

    def is_on(self, batch: Batch) -> bool:
        """Whether dropout applies to this batch."""
        return self.probability > 0 and batch.dropout is not None

    def forward(self, out: np.ndarray, x: np.ndarray, batch: Batch) -> None:
        """out (N, C) = x (N, C), some elements 0 and the others scaled up. Where dropout is off, out must be x."""
        if self.is_on(batch):
            self._backend.kernels.dropout_forward(out, x, self.probability, batch.dropout, self._offset)

    def backward(self, out: np.ndarray, dout: np.ndarray, batch: Batch) -> np.ndarray:
        """The gradient with respect to x, from dout (N, C): written to `out`, or dout itself where dropout is off."""
        if not self.is_on(batch):
            return dout
        self._backend.kernels.dropout_backward(out, dout, self.probability, batch.dropout, self._offset)
        return out
