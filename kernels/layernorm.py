"""Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).

    norm = (x - mean) * rstd        rstd = 1 / sqrt(var + eps), var over C, biased
    out  = norm * weight + bias
    with dnorm = dout * weight, means over C:
    dx   = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)) + dresidual
    dweight += sum over rows of dout * norm        dbias += sum over rows of dout
"""

import numpy as np
from numba import types

from .jit import Linked, chunk_count, is_same, kernel, prange
from .simd import FLOATS, advance, advance_optional, is_null, null, optional, pointer

linked = Linked()
P, N = FLOATS, types.int64


@linked(types.void(P, P, P, P, P, P, types.float32, N, N))
def layernorm_rows(out, mean, rstd, x, weight, bias, eps, rows, width):
    """layernorm_forward for `rows` rows; arrays are addresses, bias may be null."""
    scale = np.float32(1) / np.float32(width)
    for n in range(rows):
        row, to = advance(x, n * width), advance(out, n * width)
        total = np.float32(0)
        for c in range(width):
            total += row[c]
        m = total * scale
        # Two passes: E[x^2] - E[x]^2 in one pass is faster, but loses all digits when the mean is large. The second
        # pass also corrects the mean, whose rounding error would be the whole variance of a row of equal numbers.
        squares, rest = np.float32(0), np.float32(0)
        for c in range(width):
            d = row[c] - m
            squares += d * d
            rest += d
        rest *= scale
        m += rest
        r = np.float32(1) / np.sqrt(max(squares * scale - rest * rest, np.float32(0)) + eps)
        if is_null(bias):
            for c in range(width):
                to[c] = (row[c] - m) * r * weight[c]
        else:
            for c in range(width):
                to[c] = (row[c] - m) * r * weight[c] + bias[c]
        mean[n] = m
        rstd[n] = r


@kernel(parallel=True, calls=linked)
def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    """Normalise each row of x.

    out          (N, C)  written
    mean, rstd   (N,)    written; keep for backward
    x            (N, C)
    weight, bias (C,)    bias may be (0,) for none
    eps          scalar > 0
    """
    rows, width = x.shape
    chunks = chunk_count(x.size)
    to, means, factors, source, scales, offsets = (
        pointer(out), pointer(mean), pointer(rstd), pointer(x), pointer(weight), optional(bias),
    )
    if chunks == 1:
        layernorm_rows(to, means, factors, source, scales, offsets, np.float32(eps), rows, width)
        return
    for chunk in prange(chunks):
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        layernorm_rows(
            advance(to, start * width), advance(means, start), advance(factors, start),
            advance(source, start * width), scales, offsets, np.float32(eps), stop - start, width,
        )


@linked(types.void(P, P, P, P, P, P, P, P, P, types.boolean, N, N))
def layernorm_backward_rows(dx, dweight, dbias, dout, x, weight, mean, rstd, dresidual, is_in_place, rows, width):
    """layernorm_backward for `rows` rows; arrays are addresses, dbias and dresidual may be null.

    is_in_place  whether dx is dresidual; ignored if dresidual is null
    """
    scale = np.float32(1) / np.float32(width)
    for n in range(rows):
        row, grad, to = advance(x, n * width), advance(dout, n * width), advance(dx, n * width)
        m = mean[n]
        r = rstd[n]
        total = np.float32(0)
        dot = np.float32(0)
        for c in range(width):
            norm = (row[c] - m) * r
            dnorm = grad[c] * weight[c]
            total += dnorm
            dot += dnorm * norm
            dweight[c] += grad[c] * norm
        if not is_null(dbias):
            for c in range(width):
                dbias[c] += grad[c]
        total *= scale
        dot *= scale
        if is_null(dresidual):
            for c in range(width):
                norm = (row[c] - m) * r
                to[c] = r * (grad[c] * weight[c] - total - norm * dot)
        elif is_in_place:
            for c in range(width):
                norm = (row[c] - m) * r
                to[c] += r * (grad[c] * weight[c] - total - norm * dot)
        else:
            added = advance(dresidual, n * width)
            for c in range(width):
                norm = (row[c] - m) * r
                to[c] = r * (grad[c] * weight[c] - total - norm * dot) + added[c]


@kernel(parallel=True, calls=linked)
def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd, dresidual, partials):
    """Gradients of layernorm_forward.

    dx             (N, C)  written; may be dresidual itself
    dweight, dbias (C,)    added to; dbias may be (0,)
    dout, x        (N, C)
    weight         (C,)
    mean, rstd     (N,)    from forward
    dresidual      (N, C)  added to dx; (0, 0) for none
    partials       (MAX_CHUNKS, 2, C) scratch

    norm is computed again, with one multiply-add for each number: keeping it would take N * C floats.
    """
    rows, width = x.shape
    chunks = chunk_count(x.size)
    to, grad, source, scales, means, factors, added = (
        pointer(dx), pointer(dout), pointer(x), pointer(weight), pointer(mean), pointer(rstd), optional(dresidual),
    )
    is_in_place = is_same(dx, dresidual)
    if chunks == 1:
        layernorm_backward_rows(
            to, pointer(dweight), optional(dbias), grad, source, scales, means, factors, added, is_in_place, rows,
            width,
        )
        return
    for chunk in prange(chunks):
        for c in range(width):
            partials[chunk, 0, c] = np.float32(0)
            partials[chunk, 1, c] = np.float32(0)
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        sums, here = advance(pointer(partials), 2 * chunk * width), start * width
        layernorm_backward_rows(
            advance(to, here), sums, advance(sums, width) if dbias.size else null(), advance(grad, here),
            advance(source, here), scales, advance(means, start), advance(factors, start),
            advance_optional(added, here), is_in_place, stop - start, width,
        )
    for chunk in range(chunks):
        for c in range(width):
            dweight[c] += partials[chunk, 0, c]
        if dbias.size:
            for c in range(width):
                dbias[c] += partials[chunk, 1, c]
