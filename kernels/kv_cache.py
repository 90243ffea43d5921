"""The cache of keys and values, and attention of one new token on it.

    out_h = sum over t < length of p_t values_t        p = softmax over t of scale * q_h . keys_t

A sequence's keys and values stand in pages of T tokens (Kwon et al. 2023, arXiv:2309.06180): token t of slot b in page
pages[b, t // T]. In a page each head's rows follow one another, for a head's task to read memory in its order. Keys
stand GROUP tokens together, dimension by dimension: multiplied by a query's number, a line of them goes to as many
sums, and nothing is added up across lanes. The softmax streams (Milakov and Gimelshein 2018, arXiv:1805.02867), BLOCK
tokens at a time: the running maximum m, sum and weighted sum are rescaled when m grows; exponentials are powers of two,
the scores being scaled by 1 / ln 2 as well.
"""

import numpy as np
from numba import types

from .cached_rows import GROUP, add_rows, dot_group, stack
from .elementary import LOG2_E, exp2, exp2_lanes
from .jit import Linked, chunk_count, inline, kernel, linked, prange
from .row_group import transpose
from .simd import (
    FLOATS,
    LANES,
    add,
    advance,
    broadcast,
    copy_times,
    largest_lane,
    load,
    maximum,
    multiply,
    pointer,
    select_below,
    store,
    subtract,
    sum_of_lanes,
)
from .tile import TILE_COLUMNS

P, N, PAGES = FLOATS, types.int64, types.CPointer(types.int32)
BLOCK = 128  # tokens whose scores there are at a time

only_decoding = Linked()  # what training need not compile


@inline
def _copy(to, source, count):
    whole, ones = count // LANES * LANES, broadcast(np.float32(1))
    for d in range(0, whole, LANES):
        copy_times(advance(to, d), advance(source, d), ones)
    for d in range(whole, count):
        to[d] = source[d]


@inline
def _are_together(places, n, stop):
    """Whether the keys of LANES rows from n on go to one group's lanes, one after another."""
    if n + LANES > stop or places[n] % LANES:
        return False
    following = 0
    for lane in range(1, LANES):
        following += places[n + lane] == places[n] + lane
    return following == LANES - 1


@inline
def _write(keys, values, qkv, places, heads, kv_heads, start, stop):
    page, size = values.shape[2:]
    row, whole = qkv.shape[1], size // LANES * LANES
    n = start
    while n < stop:
        p, t = places[n] // page, places[n] % page
        tokens = LANES if _are_together(places, n, stop) else 1
        for k in range(kv_heads):
            key = advance(pointer(qkv), n * row + (heads + k) * size)
            value = advance(key, kv_heads * size)
            to_key = advance(pointer(keys[p, k, t // GROUP]), t % GROUP)
            to_value = pointer(values[p, k, t])
            transposed = whole if tokens == LANES else 0
            for d in range(0, transposed, LANES):
                transpose(advance(to_key, d * GROUP), GROUP, advance(key, d), row)
            for token in range(tokens):
                for d in range(transposed, size):
                    to_key[d * GROUP + token] = key[token * row + d]
                _copy(advance(to_value, token * size), advance(value, token * row), size)
        n += tokens


@kernel(parallel=True)
def kv_cache_write(keys, values, qkv, places, heads, kv_heads):
    """Copy the key and value of row n of qkv (N, (H+2K)*D) to places[n] (N,).

    keys   (pages, K, T / GROUP, D, GROUP)
    values (pages, K, T, D)   place p * T + t is token t of page p; places differ
    """
    rows = qkv.shape[0]
    chunks = min(chunk_count(qkv.size), max(2, rows // (2 * LANES)))  # of rows enough to be together
    if chunks == 1:
        _write(keys, values, qkv, places, heads, kv_heads, 0, rows)
        return
    for chunk in prange(chunks):
        _write(keys, values, qkv, places, heads, kv_heads, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@linked(types.void(P, P, N, N))
def pack_groups(panels, keys, depth, columns):
    """The keys of so many tokens of a page, as columns, into panels of the matrix product (matmul.py)."""
    ones = broadcast(np.float32(1))
    for j in range(0, columns, LANES):
        to = advance(panels, j // TILE_COLUMNS * TILE_COLUMNS * depth + j % TILE_COLUMNS)
        group = advance(keys, j // GROUP * GROUP * depth + j % GROUP)
        for k in range(depth):
            copy_times(advance(to, k * TILE_COLUMNS), advance(group, k * GROUP), ones)


@only_decoding(types.void(P, P, P, P, PAGES, N, N, N, N, N, types.float32), ordered=True)
def _one_head(mixed, query, keys, values, table, page, apart, length, size, following, scale):
    """One head of one row. Compiled once, so that its bits are the same wherever it is called from.

    mixed, query  addresses of the head's columns; keys, values those of its rows in the first of all pages
    apart         floats from one page to the next
    following     floats from keys to the first ones that are read after this head
    """
    weights = stack(BLOCK)
    lowest, factor = broadcast(np.float32(-np.inf)), broadcast(scale * LOG2_E)
    for d in range(size):
        mixed[d] = np.float32(0)
    top = np.float32(-np.inf)
    total = broadcast(np.float32(0))
    for begin in range(0, length, page):
        here = min(page, length - begin)
        for t in range(0, here, BLOCK):
            count = min(BLOCK, here - t)
            place = table[begin // page] * apart + t * size
            if t + BLOCK < here:
                after = place + BLOCK * size
            elif begin + page < length:
                after = table[begin // page + 1] * apart
            else:
                after = following
            rows, highs = advance(values, place), lowest
            for g in range(0, count, LANES):
                group = advance(keys, place + g // GROUP * GROUP * size + g % GROUP)
                ahead = advance(group, GROUP * size) if g + GROUP < count else rows
                scores = multiply(dot_group(query, group, size, ahead), factor)
                if count - g < LANES:
                    scores = select_below(count - g, scores, lowest)
                store(advance(weights, g), scores)
                highs = maximum(highs, scores)
            high = largest_lane(highs)
            if not (high <= top):  # NaN goes on, for the logits to show it
                shrink = exp2(top - high)
                top = high
                total = multiply(total, broadcast(shrink))
                for d in range(size):
                    mixed[d] *= shrink
            for g in range(0, count, LANES):
                line = advance(weights, g)
                powers = exp2_lanes(subtract(load(line, count - g, lowest), broadcast(top)))
                store(line, powers)
                total = add(total, powers)
            early = max(0, count - GROUP)
            add_rows(mixed, weights, rows, early, size, advance(rows, GROUP * size))
            add_rows(
                mixed, advance(weights, early), advance(rows, early * size), count - early, size, advance(keys, after)
            )
    inverse = np.float32(1) / sum_of_lanes(total)
    for d in range(size):
        mixed[d] *= inverse


@inline
def _one_task(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale, task):
    n, head = task // heads, task % heads
    page, size = values.shape[2:]
    group, apart = heads // kv_heads, kv_heads * page * size
    begin = head // group * page * size
    then = min(task + 1, out.shape[0] * heads - 1)
    following = pages[slots[then // heads], 0] * apart + then % heads // group * page * size
    _one_head(
        advance(pointer(out), n * heads * size + head * size), advance(pointer(qkv), n * qkv.shape[1] + head * size),
        advance(pointer(keys), begin), advance(pointer(values), begin), pointer(pages[slots[n]]), page, apart,
        lengths[n], size, following - begin, scale,
    )


@kernel(parallel=True)
def decode_heads(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale):
    """attention_decode, once what it calls is compiled."""
    rows, rate = out.shape[0], np.float32(scale)
    work = 0
    for n in range(rows):
        work += lengths[n] * out.shape[1]
    if chunk_count(work) == 1:
        for task in range(rows * heads):
            _one_task(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, rate, task)
        return
    for task in prange(rows * heads):
        _one_task(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, rate, np.int64(task))


def attention_decode(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale):
    """Each row attends to the first tokens of its slot. The same bits whatever other rows there are.

    out          (N, H*D)         written
    qkv          (N, (H+2K)*D)    of the new tokens; only the queries are read
    keys         (pages, K, T / GROUP, D, GROUP)  the new tokens' own already written (kv_cache_write)
    values       (pages, K, T, D)
    pages        (slots, most)    the pages of each slot, in order
    slots        (N,)             the slot of each row
    lengths      (N,)             tokens it sees, its own counted; > 0
    """
    only_decoding.compile()
    decode_heads(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale)
