"""The angles of rotary position embedding (Su et al. 2021), with the usual ways to stretch them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from ..config import ModelConfig


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Radians a position for each pair of columns: theta^(-2i/D), (D/2,) float64, scaled as the config says.

    "linear" divides all by factor (Chen et al. 2023, arXiv:2306.15595). "llama3" divides only those that turn
    less than low_freq_factor times within the original context, leaves those that turn more than
    high_freq_factor times, and blends in between (Llama 3.1's report, 2024). "factors" divides each by its own.
    """
    assert config.head_size is not None
    size = config.head_size
    frequencies = config.rope_theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["type"] == "linear":
        return frequencies / scaling["factor"]
    if scaling["type"] == "factors":
        return frequencies / np.array(scaling["factors"], np.float64)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (keep + (1 - keep) / scaling["factor"])


class Rotary:
    """cos and sin of every position and pair, (positions, D/2) each, which all layers share.

    There are as many positions as were asked for so far: a context may be a hundred thousand tokens.
    """

    def __init__(self, config: ModelConfig, dtype: DTypeLike = np.float32) -> None:
        self._frequencies = rope_frequencies(config)
        self._context = config.context
        self._dtype = dtype
        self.tables = self._make(0)

    @property
    def positions(self) -> int:
        """Of how many there are angles."""
        return len(self.tables[0])

    def reserve(self, positions: int) -> None:
        """Have the angles of so many positions."""
        if positions > self.positions:
            self.tables = self._make(min(self._context, max(256, 2 * positions)))

    def _make(self, positions: int) -> tuple[np.ndarray, np.ndarray]:
        angles = np.outer(np.arange(positions), self._frequencies)
        return np.cos(angles).astype(self._dtype), np.sin(angles).astype(self._dtype)


def sinusoidal_table(config: ModelConfig) -> np.ndarray:
    """Fixed positions (Vaswani et al. 2017): sin in even columns, cos in odd ones, (context, C) float32."""
    width = config.width
    frequencies = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.outer(np.arange(config.context), frequencies)
    table = np.empty((config.context, width), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : width // 2]
    return table
