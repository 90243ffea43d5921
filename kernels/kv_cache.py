"""The cache of keys and values, and attention of one new token on it.

    out_h = sum over t < length of p_t values_t        p = softmax over t of scale * q_h . keys_t

A sequence's keys and values stand in pages of T tokens (Kwon et al. 2023, arXiv:2309.06180): token t of slot b in
row t % T of page pages[b, t // T]. In a page each head's rows follow one another, for a head's task to read memory in
its order. They are met LANES tokens at a time. The softmax streams (Milakov and Gimelshein
2018, arXiv:1805.02867): the running maximum m, sum and weighted sum are rescaled when m grows; exponentials are powers
of two, the scores being scaled by 1 / ln 2 as well.
"""

import numpy as np
from numba import types

from .elementary import LOG2_E, exp2, exp2_lanes
from .jit import chunk_count, inline, kernel, linked, prange
from .row_group import add_rows_of_group, dot_rows_of_group
from .simd import (
    FLOATS,
    LANES,
    add,
    advance,
    broadcast,
    largest_lane,
    multiply,
    pointer,
    select_below,
    subtract,
    sum_of_lanes,
)

P, N, PAGES = FLOATS, types.int64, types.CPointer(types.int32)


@inline
def _write(keys, values, qkv, places, heads, kv_heads, start, stop):
    page, size = keys.shape[2], keys.shape[3]
    for n in range(start, stop):
        p, t = places[n] // page, places[n] % page
        for k in range(kv_heads):
            key, value = qkv[n, (heads + k) * size :], qkv[n, (heads + kv_heads + k) * size :]
            to_key, to_value = keys[p, k, t], values[p, k, t]
            for d in range(size):
                to_key[d] = key[d]
                to_value[d] = value[d]


@kernel(parallel=True)
def kv_cache_write(keys, values, qkv, places, heads, kv_heads):
    """Copy the key and value of row n of qkv (N, (H+2K)*D) to places[n] (N,).

    keys, values (pages, K, T, D)   place p * T + t is token t of page p; places differ
    """
    rows = qkv.shape[0]
    chunks = chunk_count(qkv.size)
    if chunks == 1:
        _write(keys, values, qkv, places, heads, kv_heads, 0, rows)
        return
    for chunk in prange(chunks):
        _write(keys, values, qkv, places, heads, kv_heads, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@linked(types.void(P, P, P, P, PAGES, N, N, N, N, types.float32), ordered=True)
def _one_head(mixed, query, keys, values, table, page, apart, length, size, scale):
    """One head of one row. Compiled once, so that its bits are the same wherever it is called from.

    mixed, query  addresses of the head's columns; keys, values those of its rows in the first of all pages
    apart         floats from one page to the next
    """
    lowest, factor = broadcast(np.float32(-np.inf)), broadcast(scale * LOG2_E)
    for d in range(size):
        mixed[d] = np.float32(0)
    top = np.float32(-np.inf)
    total = broadcast(np.float32(0))
    for begin in range(0, length, page):
        first, here = table[begin // page] * apart, min(page, length - begin)
        for t in range(0, here, LANES):
            place, count = first + t * size, min(LANES, here - t)
            scores = multiply(dot_rows_of_group(query, advance(keys, place), size, count, size), factor)
            if count < LANES:
                scores = select_below(count, scores, lowest)
            high = largest_lane(scores)
            if not (high <= top):  # NaN goes on, for the logits to show it
                shrink = exp2(top - high)
                top = high
                total = multiply(total, broadcast(shrink))
                for d in range(size):
                    mixed[d] *= shrink
            weights = exp2_lanes(subtract(scores, broadcast(top)))
            total = add(total, weights)
            add_rows_of_group(mixed, weights, advance(values, place), size, count, size)
    inverse = np.float32(1) / sum_of_lanes(total)
    for d in range(size):
        mixed[d] *= inverse


@inline
def _one_task(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale, task):
    n, head = task // heads, task % heads
    page, size = keys.shape[2], keys.shape[3]
    offset = head // (heads // kv_heads) * page * size
    _one_head(
        advance(pointer(out), n * heads * size + head * size), advance(pointer(qkv), n * qkv.shape[1] + head * size),
        advance(pointer(keys), offset), advance(pointer(values), offset), pointer(pages[slots[n]]), page,
        kv_heads * page * size, lengths[n], size, scale,
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
    keys, values (pages, K, T, D) the new tokens' own already written (kv_cache_write)
    pages        (slots, most)    the pages of each slot, in order
    slots        (N,)             the slot of each row
    lengths      (N,)             tokens it sees, its own counted; > 0
    """
    linked.compile()
    decode_heads(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale)
