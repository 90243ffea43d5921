"""The affine map of every linear layer.

    out = x @ weight.T + bias + residual
    dx  = dout @ weight + residual      dweight += dout.T @ x      dbias += sum over rows of dout

One row (a decoding step) reads each weight once and multiplies it once: memory bounds it, so it is done by
dot products over the rows of weight as they stand. More rows go through the matrix product.
"""

import numpy as np

from .jit import inline, kernel, prange
from .matmul import NO_ROW, product

CHUNK = 32  # outputs in one parallel piece of a one-row product
SERIAL_WEIGHTS = 65536  # one thread reads this many floats in about the time it takes to wake a second


@inline
def _dot_rows(out, x, weight, bias, residual, start, stop):
    for o in range(start, stop):
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += x[0, i] * weight[o, i]
        if bias.size:
            total += bias[o]
        if residual.size:
            total += residual[0, o]
        out[0, o] = total


@kernel(parallel=True)
def matvec(out, x, weight, bias, residual):
    """out (1, O) = x (1, I) @ weight (O, I).T + bias + residual; each of the last two may be empty."""
    outputs = weight.shape[0]
    if weight.size < SERIAL_WEIGHTS:
        _dot_rows(out, x, weight, bias, residual, 0, outputs)
        return
    for chunk in prange((outputs + CHUNK - 1) // CHUNK):
        _dot_rows(out, x, weight, bias, residual, chunk * CHUNK, min(outputs, (chunk + 1) * CHUNK))


def linear_forward(out, x, weight, bias, residual, scratch):
    """An affine map of each row.

    out      (N, O)  written
    x        (N, I)
    weight   (O, I)
    bias     (O,)    or (0,) for none
    residual (N, O)  added to the result; (0, 0) for none
    scratch  from matmul_scratch()
    """
    if x.shape[0] == 1:
        matvec(out, x, weight, bias, residual)
    else:
        product(out, x, weight, False, True, residual, bias, NO_ROW, scratch)


def linear_backward_input(dx, dout, weight, residual, scratch):
    """dx (N, I) = dout (N, O) @ weight (O, I) + residual (N, I) or (0, 0); dx may be residual itself."""
    product(dx, dout, weight, False, False, residual, NO_ROW, NO_ROW, scratch)


def linear_backward_weight(dweight, dbias, dout, x, scratch):
    """dweight (O, I) and dbias (O,) or (0,) are added to; dout (N, O), x (N, I)."""
    product(dweight, dout, x, True, False, dweight, NO_ROW, dbias, scratch)
