"""Keys and values of earlier tokens kept for decoding (Shazeer 2019, arXiv:1911.02150).

    keys[slots[n], positions[n]] = key of row n        the same for values
    out[b] = softmax(scale * query[b] @ keys[b, :lengths[b]].T) @ values[b, :lengths[b]]
"""

import numpy as np


def kv_cache_write(keys, values, qkv, slots, positions, heads, kv_heads):
    """Store the keys and values of new tokens; the other entries keep theirs.

    keys, values      (B, capacity, K*D)  written at (slots[n], positions[n])
    qkv               (N, (H+2K)*D)
    slots, positions  (N,) int32
    """
    head_size = keys.shape[2] // kv_heads
    _, key, value = np.split(qkv, [heads * head_size, (heads + kv_heads) * head_size], axis=1)
    keys[slots, positions] = key
    values[slots, positions] = value


def attention_decode(out, qkv, keys, values, lengths, heads, kv_heads, scale):
    """Let one new token of each sequence attend to its cache, which already holds its own key.

    out           (B, H*D)  written
    qkv           (B, (H+2K)*D)
    keys, values  (B, capacity, K*D)
    lengths       (B,) int32 >= 1; row b sees the positions below lengths[b]
    """
    grouped = (kv_heads, heads // kv_heads, -1)
    for b, length in enumerate(lengths):
        query = qkv[b, : out.shape[1]].reshape(grouped)  # (K, H/K, D)
        key = keys[b, :length].reshape(length, kv_heads, -1)  # (T, K, D)
        value = values[b, :length].reshape(length, kv_heads, -1)
        scores = scale * np.einsum("kgd,tkd->kgt", query, key)
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        p /= p.sum(axis=2, keepdims=True)
        out[b] = np.einsum("kgt,tkd->kgd", p, value).ravel()
