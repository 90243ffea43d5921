"""Measured figures: what is said of many, how tables show one, and how a text's table takes another's place."""

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


def put_between(whole: str, begin: str, end: str, text: str) -> str:
    """A text with another one between two of its lines. Raises ValueError where it hasn't got them."""
    before, found, rest = whole.partition(begin)
    _, behind, after = rest.partition(end)
    if not found or not behind:
        raise ValueError(f"a text must have the lines {begin} and {end}; got one or none; add them")
    return f"{before}{begin}\n{text}\n{end}{after}"
