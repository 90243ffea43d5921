"""Measured figures: their statistics, their format in tables, and replacing a table in a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(figures: Sequence[float]) -> tuple[float, float, float]:
    """The median, the 20th and the 80th percentile."""
    median, low, high = np.percentile(figures, (50, 20, 80)).tolist()
    return median, low, high


def three_digits(value: float | None) -> str:
    """A number with three significant digits, or without decimals from 100 on; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def put_between(whole: str, begin: str, end: str, text: str) -> str:
    """Replace what stands between two marker lines of `whole`. Raises ValueError if one of them is missing."""
    before, found, rest = whole.partition(begin)
    _, behind, after = rest.partition(end)
    if not found or not behind:
        raise ValueError(f"a text must have the lines {begin} and {end}, in this order; got one or none; add them")
    return f"{before}{begin}\n{text}\n{end}{after}"
