"""The affine map of every linear layer.

    out = x @ weight.T + bias + residual
    dx  = dout @ weight + residual      dweight += dout.T @ x      dbias += sum over rows of dout

One row (a decoding step) reads each weight once and multiplies it once: memory bounds it, so it is done by
dot products over the rows of weight as they stand. More rows go through the matrix product.
"""

import numpy as np

from .jit import inline, kernel, prange
from .matmul import SERIAL_WORK, optional, product, product_part
from .simd import null, pointer

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
        product(out, x, weight, False, True, residual, bias, scratch)


@inline
def _backward_part(dx, dweight, dbias, dout, x, weight, residual, accumulate, scratch, part, parts):
    """What one of so many threads does of linear_backward."""
    rows, outputs, inputs = dout.shape[0], weight.shape[0], weight.shape[1]
    spare, room = pointer(scratch), scratch.shape[1]
    before = pointer(dweight) if accumulate else null()
    product_part(
        pointer(dweight), outputs, inputs, pointer(dout), outputs, True, pointer(x), inputs, False, rows, before,
        null(), optional(dbias), spare, room, part, parts,
    )
    product_part(
        pointer(dx), rows, inputs, pointer(dout), outputs, False, pointer(weight), inputs, False, outputs,
        optional(residual), null(), null(), spare, room, part, parts,
    )


@kernel(parallel=True)
def linear_backward(dx, dweight, dbias, dout, x, weight, residual, accumulate, scratch):
    """Gradients of linear_forward: two products in one parallel region.

    dx       (N, I)  written; may be residual itself
    dweight  (O, I)  added to, or written unless accumulate; so is
    dbias    (O,)    (0,) for none
    dout     (N, O)
    x        (N, I)
    weight   (O, I)
    residual (N, I)  added to dx; (0, 0) for none
    scratch  from matmul_scratch()
    """
    if not accumulate:
        for o in range(dbias.shape[0]):
            dbias[o] = np.float32(0)
    parts = 1 if 2 * dout.shape[0] * weight.size < SERIAL_WORK else scratch.shape[0]
    if parts == 1:
        _backward_part(dx, dweight, dbias, dout, x, weight, residual, accumulate, scratch, 0, 1)
        return
    for part in prange(parts):
        _backward_part(dx, dweight, dbias, dout, x, weight, residual, accumulate, scratch, part, parts)
