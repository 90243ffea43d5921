"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467).

    norm = x * rstd        rstd = 1 / sqrt(mean(x^2) + eps), mean over C
    out  = norm * weight
    with dnorm = dout * weight:
    dx   = rstd * (dnorm - norm * mean(dnorm * norm)) + dresidual
    dweight += sum over rows of dout * norm
"""

import numpy as np

from .jit import chunk_count, inline, is_same, kernel, prange


@inline
def _normalise(out, rstd, x, weight, eps, start, stop):
    width = x.shape[1]
    for n in range(start, stop):
        squares = np.float32(0)
        for c in range(width):
            squares += x[n, c] * x[n, c]
        r = np.float32(1) / np.sqrt(squares / np.float32(width) + np.float32(eps))
        for c in range(width):
            out[n, c] = x[n, c] * r * weight[c]
        rstd[n] = r


@kernel(parallel=True)
def rms_norm_forward(out, rstd, x, weight, eps):
    """Normalise each row of x.

    out    (N, C)  written
    rstd   (N,)    written; keep for backward
    x      (N, C)
    weight (C,)
    eps    scalar > 0
    """
    rows = x.shape[0]
    chunks = chunk_count(x.size)
    if chunks == 1:
        _normalise(out, rstd, x, weight, eps, 0, rows)
        return
    for chunk in prange(chunks):
        _normalise(out, rstd, x, weight, eps, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@inline
def _backward_rows(dx, dweight, dout, x, weight, rstd, dresidual, start, stop):
    width = x.shape[1]
    is_in_place = dresidual.size > 0 and is_same(dx, dresidual)
    for n in range(start, stop):
        r = rstd[n]
        dot = np.float32(0)
        for c in range(width):
            norm = x[n, c] * r
            dot += dout[n, c] * weight[c] * norm
            dweight[c] += dout[n, c] * norm
        dot /= np.float32(width)
        if is_in_place:
            for c in range(width):
                dx[n, c] += r * (dout[n, c] * weight[c] - x[n, c] * r * dot)
        elif dresidual.size:
            for c in range(width):
                dx[n, c] = r * (dout[n, c] * weight[c] - x[n, c] * r * dot) + dresidual[n, c]
        else:
            for c in range(width):
                dx[n, c] = r * (dout[n, c] * weight[c] - x[n, c] * r * dot)


@kernel(parallel=True)
def rms_norm_backward(dx, dweight, dout, x, weight, rstd, dresidual, partials):
    """Gradients of rms_norm_forward.

    dx        (N, C)  written; may be dresidual itself
    dweight   (C,)    added to
    dout, x   (N, C)
    weight    (C,)
    rstd      (N,)    from forward
    dresidual (N, C)  added to dx; (0, 0) for none
    partials  (MAX_CHUNKS, 1, C) scratch
    """
    rows, width = x.shape
    chunks = chunk_count(x.size)
    if chunks == 1:
        _backward_rows(dx, dweight, dout, x, weight, rstd, dresidual, 0, rows)
        return
    for chunk in prange(chunks):
        for c in range(width):
            partials[chunk, 0, c] = np.float32(0)
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _backward_rows(dx, partials[chunk, 0], dout, x, weight, rstd, dresidual, start, stop)
    for chunk in range(chunks):
        for c in range(width):
            dweight[c] += partials[chunk, 0, c]
