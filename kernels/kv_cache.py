"""Attention of one new token on the keys and values kept from those before it.

    out_h = sum over t < length of p_t values_t        p = softmax over t of scale * q_h . keys_t

Slot b of the cache belongs to one sequence: keys, values (B, capacity, K*D). The softmax streams (Milakov and
Gimelshein 2018, arXiv:1805.02867): the running maximum m, sum and weighted sum are rescaled when m grows.
"""

import numpy as np

from .elementary import exp
from .jit import chunk_count, inline, kernel, prange


@kernel
def kv_cache_write(keys, values, qkv, slots, positions, heads, kv_heads):
    """Copy the key and value of row n of qkv (N, (H+2K)*D) to keys, values [slots[n], positions[n]]."""
    width = keys.shape[2]
    first = heads * (width // kv_heads)
    for n in range(qkv.shape[0]):
        key, value = qkv[n, first : first + width], qkv[n, first + width : first + 2 * width]
        to_key, to_value = keys[slots[n], positions[n]], values[slots[n], positions[n]]
        for c in range(width):
            to_key[c] = key[c]
            to_value[c] = value[c]


@inline
def _one_head(out, qkv, keys, values, length, slot, head, kv_head, size, scale):
    query = qkv[slot, head * size : (head + 1) * size]
    mixed = out[slot, head * size : (head + 1) * size]
    for d in range(size):
        mixed[d] = np.float32(0)
    top = np.float32(-np.inf)
    total = np.float32(0)
    for t in range(length):
        key = keys[slot, t, kv_head * size : (kv_head + 1) * size]
        value = values[slot, t, kv_head * size : (kv_head + 1) * size]
        score = np.float32(0)
        for d in range(size):
            score += query[d] * key[d]
        score *= np.float32(scale)
        if score > top:
            shrink = exp(top - score)
            top = score
            total *= shrink
            for d in range(size):
                mixed[d] *= shrink
        weight = exp(score - top)
        total += weight
        for d in range(size):
            mixed[d] += weight * value[d]
    inverse = np.float32(1) / total
    for d in range(size):
        mixed[d] *= inverse


@kernel(parallel=True)
def attention_decode(out, qkv, keys, values, lengths, heads, kv_heads, scale):
    """One new token for each of B sequences.

    out          (B, H*D)           written
    qkv          (B, (H+2K)*D)      of the new tokens; only the queries are read
    keys, values (B, capacity, K*D) the new tokens' own already written (kv_cache_write)
    lengths      (B,)               tokens in each slot, the new one counted; > 0
    """
    size = keys.shape[2] // kv_heads
    group = heads // kv_heads
    batch = out.shape[0]
    work = 0
    for b in range(batch):
        work += lengths[b] * heads * size
    if chunk_count(work) == 1:
        for task in range(batch * heads):
            slot, head = task // heads, task % heads
            _one_head(out, qkv, keys, values, lengths[slot], slot, head, head // group, size, scale)
        return
    for task in prange(batch * heads):
        slot, head = task // heads, task % heads
        _one_head(out, qkv, keys, values, lengths[slot], slot, head, head // group, size, scale)
