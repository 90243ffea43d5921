"""Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).

    norm = (x - mean) * rstd        rstd = 1 / sqrt(var + eps), var over C, biased
    out  = norm * weight + bias
    with dnorm = dout * weight, means over C:
    dx   = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)) + dresidual
    dweight += sum over rows of dout * norm        dbias += sum over rows of dout
"""

import numpy as np

from .jit import chunk_count, inline, is_same, kernel, prange


@inline
def _normalise(out, mean, rstd, x, weight, bias, eps, start, stop):
    width = x.shape[1]
    scale = np.float32(1) / np.float32(width)
    for n in range(start, stop):
        total = np.float32(0)
        for c in range(width):
            total += x[n, c]
        m = total * scale
        # Two passes: E[x^2] - E[x]^2 in one is quicker, but loses all digits when the mean is large.
        squares = np.float32(0)
        for c in range(width):
            d = x[n, c] - m
            squares += d * d
        r = np.float32(1) / np.sqrt(squares * scale + np.float32(eps))
        if bias.size:
            for c in range(width):
                out[n, c] = (x[n, c] - m) * r * weight[c] + bias[c]
        else:
            for c in range(width):
                out[n, c] = (x[n, c] - m) * r * weight[c]
        mean[n] = m
        rstd[n] = r


@kernel(parallel=True)
def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    """Normalise each row of x.

    out          (N, C)  written
    mean, rstd   (N,)    written; keep for backward
    x            (N, C)
    weight, bias (C,)    bias may be (0,) for none
    eps          scalar > 0
    """
    rows = x.shape[0]
    chunks = chunk_count(x.size)
    if chunks == 1:
        _normalise(out, mean, rstd, x, weight, bias, eps, 0, rows)
        return
    for chunk in prange(chunks):
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _normalise(out, mean, rstd, x, weight, bias, eps, start, stop)


@inline
def _backward_rows(dx, dweight, dbias, dout, x, weight, mean, rstd, dresidual, start, stop):
    width = x.shape[1]
    is_in_place = dresidual.size > 0 and is_same(dx, dresidual)
    scale = np.float32(1) / np.float32(width)
    for n in range(start, stop):
        m = mean[n]
        r = rstd[n]
        total = np.float32(0)
        dot = np.float32(0)
        for c in range(width):
            norm = (x[n, c] - m) * r
            dnorm = dout[n, c] * weight[c]
            total += dnorm
            dot += dnorm * norm
            dweight[c] += dout[n, c] * norm
        if dbias.size:
            for c in range(width):
                dbias[c] += dout[n, c]
        total *= scale
        dot *= scale
        if is_in_place:
            for c in range(width):
                norm = (x[n, c] - m) * r
                dx[n, c] += r * (dout[n, c] * weight[c] - total - norm * dot)
        elif dresidual.size:
            for c in range(width):
                norm = (x[n, c] - m) * r
                dx[n, c] = r * (dout[n, c] * weight[c] - total - norm * dot) + dresidual[n, c]
        else:
            for c in range(width):
                norm = (x[n, c] - m) * r
                dx[n, c] = r * (dout[n, c] * weight[c] - total - norm * dot)


@kernel(parallel=True)
def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd, dresidual, partials):
    """Gradients of layernorm_forward.

    dx             (N, C)  written; may be dresidual itself
    dweight, dbias (C,)    added to; dbias may be (0,)
    dout, x        (N, C)
    mean, rstd     (N,)    of forward
    dresidual      (N, C)  added to dx; (0, 0) for none
    partials       (64, 2, C) scratch

    norm is computed again: that saves N * C floats for one multiply-add each.
    """
    rows, width = x.shape
    chunks = chunk_count(x.size)
    if chunks == 1:
        _backward_rows(dx, dweight, dbias, dout, x, weight, mean, rstd, dresidual, 0, rows)
        return
    for chunk in prange(chunks):
        for c in range(width):
            partials[chunk, 0, c] = np.float32(0)
            partials[chunk, 1, c] = np.float32(0)
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        partial_bias = partials[chunk, 1] if dbias.size else dbias
        _backward_rows(
            dx, partials[chunk, 0], partial_bias, dout, x, weight, mean, rstd, dresidual, start, stop
        )
    for chunk in range(chunks):
        for c in range(width):
            dweight[c] += partials[chunk, 0, c]
        if dbias.size:
            for c in range(width):
                dbias[c] += partials[chunk, 1, c]
