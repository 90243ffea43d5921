"""Measured figures: what is said of many, and how tables show one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(figures: Sequence[float]) -> tuple[float, float, float]:
    """The median, the 20th and the 80th percentile."""
    median, low, high = np.percentile(figures, (50, 20, 80)).tolist()
    return median, low, high


def three_digits(value: float | None) -> str:
    """A number with three digits that count; - for what isn't known."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
