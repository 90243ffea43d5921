"""Keys and values of earlier tokens, in pages (Shazeer 2019, arXiv:1911.02150; Kwon et al. 2023, arXiv:2309.06180).

    cache[places[n]] = key, value of row n        a page has T places; its keys are T/G groups (D, G) of G tokens each
    out[n] = softmax(scale * query[n] @ keys.T) @ values, over the first lengths[n] tokens of slot slots[n]

The cache is float32, or uint16 with the bits of float16, to which keys and values are rounded.
"""

import numpy as np


def _numbers(cache):
    """A view of a cache's array as numbers: uint16 are the bits of float16."""
    return cache.view(np.float16) if cache.dtype == np.uint16 else cache


def kv_cache_write(keys, values, qkv, places, heads, kv_heads):
    """Store the keys and values of new tokens; all other places are left as they are.

    keys    (pages, K, T/G, D, G)  written at [p, :, t // G, :, t % G] where places[n] = p * T + t
    values  (pages, K, T, D)       written at [p, :, t]
    qkv     (N, (H+2K)*D)
    places  (N,) int32
    """
    page, size = values.shape[2:]
    group = keys.shape[4]
    rows = qkv.reshape(len(qkv), -1, size)
    p, t = places // page, places % page
    _numbers(keys)[p, :, t // group, :, t % group] = rows[:, heads : heads + kv_heads]
    _numbers(values)[p, :, t] = rows[:, heads + kv_heads :]


def attention_decode(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale, scratch):
    """Let each row, a new token of its slot, attend to the slot's cache, which already holds its own key and value.

    out            (N, H*D)  written
    qkv            (N, (H+2K)*D)
    keys           (pages, K, T/G, D, G)
    values         (pages, K, T, D)
    pages          (slots, most) int32, the page numbers of each slot, in order
    slots, lengths (N,) int32; row n sees the first lengths[n] >= 1 tokens of slot slots[n]
    """
    grouped = (kv_heads, heads // kv_heads, -1)
    for n, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        query = qkv[n, : out.shape[1]].reshape(grouped)  # (K, H/K, D)
        used = pages[slot, : -(-length // values.shape[2])]
        key, value = (
            np.concatenate(_numbers(cache).astype(qkv.dtype), axis=1)[:, :length]
            for cache in (keys[used].swapaxes(3, 4).reshape(values[used].shape), values[used])
        )  # (K, T, D)
        scores = scale * (query @ key.swapaxes(1, 2))
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        p /= p.sum(axis=2, keepdims=True)
        out[n] = (p @ value).ravel()
