"""Attention of several new tokens of a sequence over its cache (kv_cache.py): for prompts, which are read in stretches.

    out_i = sum over j <= i of p_ij values_j        p_i = softmax over j <= i of scale * q_i . keys_j

i and j count from the start of the sequence, of which `before` tokens precede the new ones. The blocks of queries and
keys are those of attention.py.
"""

import numpy as np

from .attention import QUERIES, forward_block, linked, owner
from .jit import inline, kernel, prange
from .matmul import SERIAL_WORK
from .simd import advance, as_floats, null, pointer


@inline
def _seen(starts, before):
    """About twice the number of one head's scores, where before[s] keys precede the first query of stretch s."""
    total = 0
    for s in range(starts.shape[0] - 1):
        length = np.int64(starts[s + 1] - starts[s])
        total += length * (2 * before[s] + length)
    return total


@inline
def _prefill_part(out, qkv, keys, values, pages, slots, starts, before, heads, kv_heads, scale, scratch, part, parts):
    """The share of thread number `part` of `parts` in attention_prefill."""
    size = out.shape[1] // heads
    row, out_row, page = qkv.shape[1], out.shape[1], values.shape[2]
    group, done = heads // kv_heads, 0
    total = _seen(starts, before) * heads
    for s in range(starts.shape[0] - 1):
        start, stop = np.int64(starts[s]), np.int64(starts[s + 1])
        for h in range(heads):
            kv = h // group * page * size
            for i in range(start, stop, QUERIES):
                queries = min(QUERIES, stop - i)
                first = np.int64(before[s]) + i - start
                work = queries * (2 * first + queries)
                if owner(done, work, total, parts) == part:
                    forward_block(
                        advance(pointer(out), i * out_row + h * size),
                        out_row,
                        null(),
                        0,
                        advance(pointer(qkv), i * row + h * size),
                        row,
                        as_floats(advance(pointer(keys), kv)),
                        as_floats(advance(pointer(values), kv)),
                        size,
                        pointer(pages[slots[s]]),
                        page,
                        kv_heads * page * size,
                        values.itemsize == 2,
                        first,
                        queries,
                        size,
                        scale,
                        scratch,
                    )
                done += work


@kernel(parallel=True, calls=linked)
def attention_prefill(
    out, qkv, keys, values, pages, slots, starts, before, heads, kv_heads, scale, scratch
):
    """Stretches of new tokens attend to their sequences in the cache, each token to itself and all before it.

    out          (N, H*D)         written
    qkv          (N, (H+2K)*D)    of the new tokens; only the queries are read
    keys         (pages, K, T / GROUP, D, GROUP)  as in kv_cache_write, which has written the new tokens' own before
    values       (pages, K, T, D)                 likewise; T is at most KEYS, or a multiple of that
    pages        (slots, most)    the page numbers of each slot, in order
    slots        (S,)             the slot of each stretch
    starts       (S+1,)           stretch s has rows starts[s] .. starts[s+1]-1
    before       (S,)             tokens in the slot before the stretch
    scale        usually 1 / sqrt(D)
    scratch      from attention_scratch(D)
    """
    parts = scratch.shape[0]
    rate = np.float32(scale)
    room, floats = pointer(scratch), scratch.shape[1]
    if parts == 1 or _seen(starts, before) * out.shape[1] < SERIAL_WORK:
        _prefill_part(
            out, qkv, keys, values, pages, slots, starts, before, heads, kv_heads, rate, room, 0, 1
        )
        return
    for part in prange(parts):
        _prefill_part(
            out, qkv, keys, values, pages, slots, starts, before, heads, kv_heads, rate, advance(room, part * floats),
            part, parts,
        )
