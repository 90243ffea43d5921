"""RMSNorm of each head's query and key, before RoPE (Henry et al. 2020, arXiv:2010.04245; as in Qwen3).

    rstd = 1 / sqrt(mean(x^2) + eps) over a head's D columns        out = x * rstd * weight
    with norm = x * rstd and dnorm = dout * weight:
    dx   = rstd * (dnorm - norm * mean(dnorm * norm))        dweight += sum over rows and heads of dout * norm

One weight (D,) serves all query heads, another all key heads. Values pass through.
"""

import numpy as np

from .jit import chunk_count, inline, kernel, prange


@inline
def _normalise(out, rstd, x, query_weight, key_weight, heads, kv_heads, eps, start, stop):
    size = query_weight.shape[0]
    for n in range(start, stop):
        for h in range(heads + kv_heads):
            weight = query_weight if h < heads else key_weight
            source, to = x[n, h * size : (h + 1) * size], out[n, h * size : (h + 1) * size]
            squares = np.float32(0)
            for d in range(size):
                squares += source[d] * source[d]
            r = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(eps))
            for d in range(size):
                to[d] = source[d] * r * weight[d]
            rstd[n, h] = r
        values, to = x[n, (heads + kv_heads) * size :], out[n, (heads + kv_heads) * size :]
        for c in range(values.shape[0]):
            to[c] = values[c]


@kernel(parallel=True)
def head_norm_forward(out, rstd, x, query_weight, key_weight, heads, kv_heads, eps):
    """Normalise the queries and keys of x, and copy its values.

    out  (N, (H+2K)*D)  written
    rstd (N, H+K)       written; keep for backward
    x    (N, (H+2K)*D)
    query_weight, key_weight  (D,)
    heads, kv_heads           H, K
    eps  scalar > 0
    """
    rows = x.shape[0]
    chunks = chunk_count(x.size)
    if chunks == 1:
        _normalise(out, rstd, x, query_weight, key_weight, heads, kv_heads, eps, 0, rows)
        return
    for chunk in prange(chunks):
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _normalise(out, rstd, x, query_weight, key_weight, heads, kv_heads, eps, start, stop)


@inline
def _backward_rows(
    dx, dquery_weight, dkey_weight, dout, x, query_weight, key_weight, rstd, heads, kv_heads, start, stop
):
    size = query_weight.shape[0]
    for n in range(start, stop):
        for h in range(heads + kv_heads):
            weight = query_weight if h < heads else key_weight
            dweight = dquery_weight if h < heads else dkey_weight
            source, r = x[n, h * size : (h + 1) * size], rstd[n, h]
            above, to = dout[n, h * size : (h + 1) * size], dx[n, h * size : (h + 1) * size]
            dot = np.float32(0)
            for d in range(size):
                norm = source[d] * r
                dot += above[d] * weight[d] * norm
                dweight[d] += above[d] * norm
            dot /= np.float32(size)
            for d in range(size):
                to[d] = r * (above[d] * weight[d] - source[d] * r * dot)
        above, to = dout[n, (heads + kv_heads) * size :], dx[n, (heads + kv_heads) * size :]
        for c in range(above.shape[0]):
            to[c] = above[c]


@kernel(parallel=True)
def head_norm_backward(
    dx, dquery_weight, dkey_weight, dout, x, query_weight, key_weight, rstd, heads, kv_heads, partials
):
    """Gradients of head_norm_forward.

    dx       (N, (H+2K)*D)  written; may not be dout
    dquery_weight, dkey_weight  (D,)  added to
    dout, x  (N, (H+2K)*D)
    query_weight, key_weight    (D,)
    rstd     (N, H+K)       from forward
    heads, kv_heads             H, K
    partials (MAX_CHUNKS, 2, D) scratch
    """
    rows = x.shape[0]
    chunks = chunk_count(x.size)
    if chunks == 1:
        _backward_rows(
            dx, dquery_weight, dkey_weight, dout, x, query_weight, key_weight, rstd, heads, kv_heads, 0, rows
        )
        return
    for chunk in prange(chunks):
        partials[chunk] = np.float32(0)
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _backward_rows(
            dx, partials[chunk, 0], partials[chunk, 1], dout, x, query_weight, key_weight, rstd, heads, kv_heads,
            start, stop,
        )
    for chunk in range(chunks):
        for d in range(dquery_weight.shape[0]):
            dquery_weight[d] += partials[chunk, 0, d]
            dkey_weight[d] += partials[chunk, 1, d]
