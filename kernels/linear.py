"""The affine map of every linear layer.

    out = x @ weight.T + bias + residual
    dx  = dout @ weight + residual      dweight += dout.T @ x      dbias += sum over rows of dout

A decoding step has few rows and is bound by reading the weights from memory: packed.py reads them as they are stored.
"""

import numpy as np

from .jit import inline, kernel, prange, prepared
from .matmul import SERIAL_WORK, linked, product, product_part
from .simd import null, optional, pointer


@prepared
def linear_forward(out, x, weight, bias, residual, scratch):
    """An affine map of each row.

    out      (N, O)  written
    x        (N, I)
    weight   (O, I)
    bias     (O,)    or (0,) for none
    residual (N, O)  added to the result; (0, 0) for none
    scratch  from matmul_scratch()
    """
    return product, (out, x, weight, False, True, residual, bias, scratch)


@inline
def _backward_part(dx, dweight, dbias, dout, x, weight, residual, accumulate, scratch, part, parts):
    """The share of thread number `part` of `parts` in linear_backward."""
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


@kernel(parallel=True, calls=linked)
def linear_backward(dx, dweight, dbias, dout, x, weight, residual, accumulate, scratch):
    """Gradients of linear_forward: two products in one parallel region.

    dx       (N, I)  written; may be residual itself
    dweight  (O, I)  added to if accumulate, else overwritten
    dbias    (O,)    likewise; (0,) for none
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
