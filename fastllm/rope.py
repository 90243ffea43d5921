"""The frequencies of rotary position embedding (Su et al. 2021), with the usual ways to scale them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig


def rope_frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Radians per position for each pair of columns, (D/2,): theta^(-2i/D), divided as the configuration says."""
    return base_frequencies(config) / rope_divisors(config)


def base_frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """theta^(-2i/D), (D/2,)."""
    assert config.head_size is not None
    size = config.head_size
    with np.errstate(over="ignore"):  # a damaged file may have a theta near 0
        return np.float64(config.rope_theta) ** (-np.arange(0, size, 2, dtype=np.float64) / size)


def rope_divisors(config: ModelConfig) -> NDArray[np.float64]:
    """The divisors of the frequencies: one number for all, or (D/2,).

    "linear" divides all by factor (Chen et al. 2023, arXiv:2306.15595). "llama3" divides those that turn less than
    low_freq_factor times within the original context, keeps those that turn more than high_freq_factor times, and
    interpolates in between (as released with Llama 3.1, 2024). "factors" divides each by its own number.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return np.ones(())
    if scaling["type"] == "linear":
        return np.array(scaling["factor"], np.float64)
    if scaling["type"] == "factors":
        return np.array(scaling["factors"], np.float64)
    turns = float(scaling["original_max_position_embeddings"]) * base_frequencies(config) / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (keep + (1 - keep) / scaling["factor"])
