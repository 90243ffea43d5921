"""Arrays aligned to cache lines, large ones each at another line of a page; and a mark that tells when arrays move."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import DTypeLike

CACHE_LINE = 64  # bytes
PAGE = 4096
_number = itertools.count()


class Place:
    """Identifies the current memory locations of some arrays: when they move, a new Place takes over.

    Whatever depends on those locations, such as recorded calls, is kept in a mapping with the Place as a weak key, so
    that it goes away together with it.
    """


def aligned(shape: int | tuple[int, ...], dtype: DTypeLike, zeroed: bool = False) -> np.ndarray:
    """Like np.empty, or np.zeros, but the first element begins a cache line; NumPy only aligns to 16 bytes.

    Otherwise two threads that write to neighbouring columns of a matrix share a line in each row: a quarter of a
    product's time went into passing it back and forth.

    The system places each large array at the beginning of a page. Code that walks through several of them at once, as
    an optimizer does, then uses addresses that are whole pages apart, which collide in the L1 cache: AdamW took a
    tenth longer. So large arrays begin at different lines of a page.

    Raises MemoryError where there is no room.
    """
    kind = np.dtype(dtype)
    size = math.prod((shape,) if isinstance(shape, int) else shape) * kind.itemsize
    ahead, line = (PAGE, next(_number) * 17 * CACHE_LINE % PAGE) if size >= 16 * PAGE else (CACHE_LINE, 0)
    try:
        raw = (np.zeros if zeroed else np.empty)(size + ahead, np.uint8)
    except MemoryError:
        raise MemoryError(
            f"arrays must fit into memory; got one more of {size / 1e9:.3g} GB; use a smaller model, fewer or shorter "
            "texts at a time, or close other programs"
        ) from None
    start = (line - raw.ctypes.data) % ahead
    return raw[start : start + size].view(kind).reshape(shape)
