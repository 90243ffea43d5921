"""Causal attention over packed sequences (Vaswani et al. 2017, arXiv:1706.03762) with grouped
key/value heads (Ainslie et al. 2023, arXiv:2305.13245).

    scores = scale * query @ key.T, -inf above the diagonal        lse = log2(sum(exp(scores)))
    p      = 2^(scores / ln 2 - lse)        out = p @ value
    backward (Dao et al. 2022, arXiv:2205.14135), sums over D and over the heads of a group:
    dvalue = p.T @ dout        dp = dout @ value.T
    dscores = p * (dp - sum(dout * out))
    dquery = scale * dscores @ key        dkey = scale * dscores.T @ query

All scores of a sequence are in memory at once, so memory grows with the square of its length.
"""

from itertools import pairwise

import numpy as np

LN_2 = 0.6931471805599453


def _split_heads(qkv, heads, kv_heads):
    """(T, (H+2K)*D) -> query, key, value, each (H, T, D); key and value heads are repeated for their group."""
    by_head = qkv.reshape(len(qkv), heads + 2 * kv_heads, -1).swapaxes(0, 1)
    query, key, value = np.split(by_head, [heads, heads + kv_heads])
    group = heads // kv_heads
    return query, key.repeat(group, axis=0), value.repeat(group, axis=0)


def _causal_scores(query, key, scale):
    """(H, T, D), (H, T, D) -> (H, T, T); -inf where a row would see a later row."""
    scores = scale * (query @ key.swapaxes(1, 2))
    return np.where(np.tri(scores.shape[1], dtype=bool), scores, -np.inf)


def attention_forward(out, lse, qkv, starts, heads, kv_heads, scale, scratch):
    """Let each row attend to itself and the earlier rows of its sequence.

    out       (N, H*D)  written
    lse       (N, H)    written, logarithms to the base 2; keep for backward
    qkv       (N, (H+2K)*D)  query, key and value heads, in this order
    starts    (S+1,) int32   first row of each sequence, then N
    heads, kv_heads  H, K; query head h uses key/value head h // (H // K)
    """
    for begin, end in pairwise(starts):
        query, key, value = _split_heads(qkv[begin:end], heads, kv_heads)
        scores = _causal_scores(query, key, scale)
        top = scores.max(axis=2, keepdims=True)
        p = np.exp(scores - top)
        total = p.sum(axis=2, keepdims=True)
        p /= total
        lse[begin:end] = (top / LN_2 + np.log2(total))[..., 0].T
        out[begin:end] = (p @ value).swapaxes(0, 1).reshape(end - begin, -1)


def attention_backward(dqkv, dout, out, lse, qkv, starts, heads, kv_heads, scale, dq_pieces, scratch):
    """Gradient of attention_forward.

    dqkv       (N, (H+2K)*D)  overwritten
    dout, out  (N, H*D)
    lse        (N, H)
    the others as in attention_forward
    """
    for begin, end in pairwise(starts):
        query, key, value = _split_heads(qkv[begin:end], heads, kv_heads)
        shape = (end - begin, heads, -1)
        dhead = dout[begin:end].reshape(shape).swapaxes(0, 1)  # (H, T, D)
        head = out[begin:end].reshape(shape).swapaxes(0, 1)

        p = np.exp2(_causal_scores(query, key, scale) / LN_2 - lse[begin:end].T[..., None])
        dp = dhead @ value.swapaxes(1, 2)
        dscores = p * (dp - (dhead * head).sum(axis=2, keepdims=True))
        dquery = scale * (dscores @ key)
        dkey = scale * (dscores.swapaxes(1, 2) @ query)
        dvalue = p.swapaxes(1, 2) @ dhead

        grouped = (kv_heads, heads // kv_heads, *dkey.shape[1:])
        by_head = [dquery, dkey.reshape(grouped).sum(axis=1), dvalue.reshape(grouped).sum(axis=1)]
        dqkv[begin:end] = np.concatenate(by_head).swapaxes(0, 1).reshape(end - begin, -1)
