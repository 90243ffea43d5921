"""Keys and values of earlier tokens kept in pages (Shazeer 2019, arXiv:1911.02150; Kwon et al. 2023, arXiv:2309.06180).

    row places[n] of all pages = key of row n        the same for values
    out[n] = softmax(scale * query[n] @ keys.T) @ values, of the first lengths[n] tokens of slot slots[n]
"""

import numpy as np


def kv_cache_write(keys, values, qkv, places, heads, kv_heads):
    """Store the keys and values of new tokens; the other entries keep theirs.

    keys, values  (pages, T, K*D)  written at row places[n] of all (pages * T)
    qkv           (N, (H+2K)*D)
    places        (N,) int32
    """
    width = keys.shape[2]
    _, key, value = np.split(qkv, [-2 * width, -width], axis=1)
    keys.reshape(-1, width)[places] = key
    values.reshape(-1, width)[places] = value


def attention_decode(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale):
    """Let one new token of each row's slot attend to its cache, which already holds its own key.

    out            (N, H*D)  written
    qkv            (N, (H+2K)*D)
    keys, values   (pages, T, K*D)
    pages          (slots, most) int32, the pages of each slot
    slots, lengths (N,) int32; row n sees the first lengths[n] >= 1 tokens of slot slots[n]
    """
    grouped = (kv_heads, heads // kv_heads, -1)
    for n, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        used = pages[slot, : -(-length // keys.shape[1])]
        query = qkv[n, : out.shape[1]].reshape(grouped)  # (K, H/K, D)
        key = keys[used].reshape(-1, keys.shape[2])[:length].reshape(length, kv_heads, -1)  # (T, K, D)
        value = values[used].reshape(-1, keys.shape[2])[:length].reshape(length, kv_heads, -1)
        scores = scale * np.einsum("kgd,tkd->kgt", query, key)
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        p /= p.sum(axis=2, keepdims=True)
        out[n] = np.einsum("kgt,tkd->kgd", p, value).ravel()
