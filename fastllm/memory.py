"""Arrays that begin at a cache line, and large ones each at another line of a page; and whether they have moved."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import DTypeLike

CACHE_LINE = 64  # bytes
PAGE = 4096
_number = itertools.count()


class Place:
    """Stands for arrays as long as they stay where they are in memory: then another takes its place.

    What is known of where they are has it as a weak key, and is gone with it.
    """


def aligned(shape: int | tuple[int, ...], dtype: DTypeLike, zeroed: bool = False) -> np.ndarray:
    """As np.empty, or np.zeros, but the first element stands at a cache line's start; NumPy promises 16 bytes only.

    Two threads that write to neighbouring columns of a matrix otherwise share a line in each row: a quarter of a
    product's time went to passing it back and forth.

    The system begins each large array at a page. Where several of them are gone through side by side, as an optimizer
    does, the L1 cache takes addresses that are whole pages apart for one another: AdamW took a tenth longer.
    """
    kind = np.dtype(dtype)
    size = math.prod((shape,) if isinstance(shape, int) else shape) * kind.itemsize
    ahead, line = (PAGE, next(_number) * 17 * CACHE_LINE % PAGE) if size >= 16 * PAGE else (CACHE_LINE, 0)
    raw = (np.zeros if zeroed else np.empty)(size + ahead, np.uint8)
    start = (line - raw.ctypes.data) % ahead
    return raw[start : start + size].view(kind).reshape(shape)
