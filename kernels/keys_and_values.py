"""Packing the keys and values of one head and a block of tokens into panels (matmul.py), for attention's products.

They come from rows of float32, or from the pages of a cache (kv_cache.py), as float32 or float16.
"""

import numpy as np
from numba import types

from .cached_rows import GROUP
from .jit import Linked
from .llvm import LANES
from .matmul import linked as products
from .matmul import pack_rows, pack_transposed
from .simd import FLOATS, HALVES, INDICES, advance, as_halves, broadcast, copy_times, load_all, store
from .tile import TILE_COLUMNS

linked = Linked(products)
P, N, B = FLOATS, types.int64, types.boolean


@linked(types.void(P, P, N, N))
def pack_groups(panels, keys, depth, columns):
    """Pack the keys of `columns` tokens of a page, stored in groups, as pack_transposed packs rows.

    depth  the head size. Columns are copied in whole vectors, so the panels must have room for these
    """
    ones = broadcast(np.float32(1))
    for j in range(0, columns, LANES):
        to = advance(panels, j // TILE_COLUMNS * TILE_COLUMNS * depth + j % TILE_COLUMNS)
        group = advance(keys, j // GROUP * GROUP * depth + j % GROUP)
        for k in range(depth):
            copy_times(advance(to, k * TILE_COLUMNS), advance(group, k * GROUP), ones)


@linked(types.void(P, HALVES, N))
def widen(to, halves, count):
    """Convert `count` float16, rounded up to whole vectors, to float32."""
    for i in range(0, count, LANES):
        store(advance(to, i), load_all(advance(halves, i)))


@linked(types.void(P, P, P, P, N, INDICES, N, N, B, N, N, N, P))
def pack_keys_and_values(k_panels, v_panels, k, v, row, pages, page, apart, is_half, first, keys, size, spare):
    """Pack keys first .. first + keys - 1 of a sequence and head as transposed B, and their values as B.

    page         tokens in a page of the cache; the block lies within one page. 0: there is no cache, only rows
    k, v         without a cache, addresses of the sequence's first key and value; else of the head's part of page 0
    row          numbers from one token's key or value to the next one's; in a cache that is `size` (for values)
    pages        the page numbers of the sequence
    apart        numbers from one page to the next
    is_half      whether the cache holds float16; k and v point to that then
    size         D
    spare        room for a block's keys, then its values, as float32; used for float16 only
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
