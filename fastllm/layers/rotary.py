"""The angles of positions: rotary (rope.py), which all layers share, and sinusoidal."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ..config import ModelConfig
from ..rope import rope_frequencies


class Rotary:
    """`tables`: cos and sin of position * frequency, (positions, D/2) each, which all layers share.

    They reach only as far as was asked for: a context may be a hundred thousand tokens.
    """

    def __init__(self, config: ModelConfig, dtype: DTypeLike = np.float32) -> None:
        self._frequencies = rope_frequencies(config)
        self._context = config.context
        self._dtype = dtype
        self.tables = self._make(0)

    @property
    def positions(self) -> int:
        """How many positions the tables cover."""
        return len(self.tables[0])

    def reserve(self, positions: int) -> None:
        """Let the tables cover at least this many positions."""
        if positions > self.positions:
            self.tables = self._make(min(self._context, max(256, 2 * positions)))

    def _make(self, positions: int) -> tuple[np.ndarray, np.ndarray]:
        angles = np.outer(np.arange(positions), self._frequencies)
        return np.cos(angles).astype(self._dtype), np.sin(angles).astype(self._dtype)


def sinusoidal_table(config: ModelConfig, dtype: DTypeLike) -> np.ndarray:
    """Fixed positions (Vaswani et al. 2017): sin in even columns, cos in odd ones, (context, C)."""
    width = config.width
    frequencies = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.outer(np.arange(config.context), frequencies)
    table = np.empty((config.context, width), dtype)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : width // 2]
    return table
