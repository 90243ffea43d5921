"""Keys and values of one head and a block of tokens, as attention's products take them: in panels (matmul.py).

They stand in rows, or in the pages of a cache (kv_cache.py), there as float32 or float16.
"""

import numpy as np
from numba import types

from .cached_rows import GROUP
from .jit import Linked
from .llvm import LANES
from .matmul import linked as products
from .matmul import pack_rows, pack_transposed
from .simd import FLOATS, HALVES, advance, as_halves, broadcast, copy_times, load_all, store
from .tile import TILE_COLUMNS

linked = Linked(products)
P, N, B = FLOATS, types.int64, types.boolean
PAGES = types.CPointer(types.int32)


@linked(types.void(P, P, N, N))
def pack_groups(panels, keys, depth, columns):
    """Pack the keys of so many tokens of a page as pack_transposed does those of rows."""
    ones = broadcast(np.float32(1))
    for j in range(0, columns, LANES):
        to = advance(panels, j // TILE_COLUMNS * TILE_COLUMNS * depth + j % TILE_COLUMNS)
        group = advance(keys, j // GROUP * GROUP * depth + j % GROUP)
        for k in range(depth):
            copy_times(advance(to, k * TILE_COLUMNS), advance(group, k * GROUP), ones)


@linked(types.void(P, HALVES, N))
def widen(to, halves, count):
    """So many float16 as float32, rounded up to whole vectors."""
    for i in range(0, count, LANES):
        store(advance(to, i), load_all(advance(halves, i)))


@linked(types.void(P, P, P, P, N, PAGES, N, N, B, N, N, N, P))
def pack_keys_and_values(k_panels, v_panels, k, v, row, pages, page, apart, is_half, first, keys, size, spare):
    """Pack keys first .. first + keys - 1 of a sequence, transposed, and their values.

    k, v         addresses of the sequence's first ones, or of the first of all pages; row floats from one to the next
    pages, page  numbers of the pages that hold the sequence's, `page` tokens each; the block lies within one of them.
                 page = 0: they are one stretch of rows
    apart        numbers from a page to the next
    is_half      whether pages hold float16
    spare        room for the keys, then the values, as float32
    """
    if page == 0:
        pack_transposed(k_panels, advance(k, first * row), row, size, keys)
        pack_rows(v_panels, advance(v, first * row), row, keys, size, np.float32(1))
        return
    begin = pages[first // page] * apart + first % page * row
    if is_half:
        widen(spare, advance(as_halves(k), begin), (keys + GROUP - 1) // GROUP * GROUP * size)
        pack_groups(k_panels, spare, size, keys)
        widen(spare, advance(as_halves(v), begin), keys * size)
        pack_rows(v_panels, spare, size, keys, size, np.float32(1))
    else:
        pack_groups(k_panels, advance(k, begin), size, keys)
        pack_rows(v_panels, advance(v, begin), row, keys, size, np.float32(1))
