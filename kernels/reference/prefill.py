"""Attention of several new tokens of a sequence over its cache.

    scores = scale * query @ key.T, -inf for later tokens        out = softmax(scores) @ value
"""

from itertools import pairwise

import numpy as np


def _numbers(cache):
    """A view of a cache's array as numbers: uint16 are the bits of float16."""
    return cache.view(np.float16) if cache.dtype == np.uint16 else cache


def attention_prefill(out, qkv, keys, values, pages, slots, starts, before, heads, kv_heads, scale, scratch):
    """Let each row attend to its slot's tokens up to itself; the cache already holds its own key and value.

    out           (N, H*D)  written
    qkv           (N, (H+2K)*D)
    keys          (pages, K, T/G, D, G)  as kv_cache_write leaves them
    values        (pages, K, T, D)       likewise
    pages         (slots, most) int32, the page numbers of each slot, in order
    slots         (S,) int32, the slot of each stretch of rows
    starts        (S+1,) int32, the first row of each stretch, then N
    before        (S,) int32, tokens in the slot before the stretch
    """
    size = out.shape[1] // heads
    for (begin, end), slot, earlier in zip(pairwise(starts), slots, before, strict=True):
        length = earlier + end - begin
        used = pages[slot, : -(-length // values.shape[2])]
        key, value = (
            np.concatenate(_numbers(cache).astype(qkv.dtype), axis=1)[:, :length].repeat(heads // kv_heads, axis=0)
            for cache in (keys[used].swapaxes(3, 4).reshape(values[used].shape), values[used])
        )  # (H, T, D)
        query = qkv[begin:end, : heads * size].reshape(-1, heads, size).swapaxes(0, 1)
        scores = scale * (query @ key.swapaxes(1, 2))
        is_seen = np.arange(length) <= np.arange(earlier, length)[:, None]
        scores = np.where(is_seen, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        p /= p.sum(axis=2, keepdims=True)
        out[begin:end] = (p @ value).swapaxes(0, 1).reshape(end - begin, -1)
