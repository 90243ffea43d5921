"""RMSNorm of each head's query and key (Henry et al. 2020, arXiv:2010.04245).

    rstd = 1 / sqrt(mean(x^2) + eps)        out = weight * x * rstd, over a head; values pass through
    backward, with norm = x * rstd and dnorm = dout * weight:
    dx = rstd * (dnorm - norm * mean(dnorm * norm))        dweight += sum over rows and heads of dout * norm
"""

import numpy as np


def split(rows, heads, kv_heads):
    """(N, (H+2K)*D) -> queries (N, H, D), keys (N, K, D), values (N, K, D)."""
    return np.split(rows.reshape(len(rows), heads + 2 * kv_heads, -1), [heads, heads + kv_heads], axis=1)


def head_norm_forward(out, rstd, x, query_weight, key_weight, heads, kv_heads, eps):
    """Normalise the queries and keys.

    out   (N, (H+2K)*D)  written
    rstd  (N, H+K)       written; keep for backward
    x     (N, (H+2K)*D)
    """
    query, key, value = split(x, heads, kv_heads)
    both = np.concatenate([query, key], axis=1)
    rstd[...] = 1 / np.sqrt(np.square(both).mean(axis=2) + eps)
    query = query * rstd[:, :heads, None] * query_weight
    key = key * rstd[:, heads:, None] * key_weight
    out[...] = np.concatenate([query, key, value], axis=1).reshape(x.shape)


def head_norm_backward(
    dx, dquery_weight, dkey_weight, dout, x, query_weight, key_weight, rstd, heads, kv_heads, partials
):
    """Gradients of head_norm_forward.

    dx  (N, (H+2K)*D)  overwritten; the values' part is copied from dout
    dquery_weight, dkey_weight  (D,)  added to
    """
    r = np.split(rstd[..., None], [heads], axis=1)
    parts = zip(split(x, heads, kv_heads), split(dout, heads, kv_heads), r, (query_weight, key_weight), strict=False)
    gradients = []
    for (part, above, rate, weight), dweight in zip(parts, (dquery_weight, dkey_weight), strict=True):
        norm, dnorm = part * rate, above * weight
        dweight += (above * norm).sum(axis=(0, 1))
        gradients.append(rate * (dnorm - norm * (dnorm * norm).mean(axis=2, keepdims=True)))
    dx[...] = np.concatenate([*gradients, split(dout, heads, kv_heads)[2]], axis=1).reshape(x.shape)
