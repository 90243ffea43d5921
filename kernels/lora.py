"""A low-rank addition to a linear map (Hu et al. 2021, arXiv:2106.09685).

    hidden = scale * x @ a.T         out += hidden @ b.T             x (N, I), a (R, I), b (O, R), R small
    db += dout.T @ hidden            dhidden = scale * dout @ b
    da += dhidden.T @ x              dx += dhidden @ a

out and dout may be wider than O: the map's outputs are their columns from `first` on, as with query, key and value side
by side.
"""

import numpy as np

from .jit import inline, kernel, prange
from .matmul import SERIAL_WORK, linked, multiply
from .simd import advance, null, pointer


@inline
def _forward_part(out, hidden, x, a, b, first, scale, scratch, part, parts):
    rows, inputs, rank, outputs = x.shape[0], x.shape[1], a.shape[0], b.shape[0]
    width, room = out.shape[1], scratch.shape[1]
    start, stop = rows * part // parts, rows * (part + 1) // parts
    high, panels = stop - start, advance(pointer(scratch), part * room)
    middle, target = advance(pointer(hidden), start * rank), advance(pointer(out), start * width + first)
    multiply(
        middle, rank, advance(pointer(x), start * inputs), inputs, False, pointer(a), inputs, True, high, rank, inputs,
        null(), 0, null(), null(), panels, room,
    )
    for i in range(high * rank):
        middle[i] *= scale
    multiply(
        target, width, middle, rank, False, pointer(b), rank, True, high, outputs, rank, target, width, null(), null(),
        panels, room,
    )


@kernel(parallel=True, calls=linked)
def lora_forward(out, hidden, x, a, b, first, scale, scratch):
    """Add the low-rank map of each row.

    out     (N, W)  columns first .. first + O - 1 are added to
    hidden  (N, R)  written; keep for backward
    x       (N, I)
    a, b    (R, I), (O, R)
    first   column of out
    scale   factor of the low-rank product
    scratch from matmul_scratch()
    """
    parts = 1 if x.size * a.shape[0] < SERIAL_WORK else scratch.shape[0]
    rate = np.float32(scale)
    if parts == 1:
        _forward_part(out, hidden, x, a, b, first, rate, scratch, 0, 1)
        return
    for part in prange(parts):
        _forward_part(out, hidden, x, a, b, first, rate, scratch, part, parts)


@inline
def _rows_part(dx, dhidden, dout, a, b, first, scale, scratch, part, parts):
    """dhidden and dx for the rows of thread number `part` of `parts`."""
    rows, inputs, rank, outputs = dx.shape[0], dx.shape[1], a.shape[0], b.shape[0]
    width, room = dout.shape[1], scratch.shape[1]
    start, stop = rows * part // parts, rows * (part + 1) // parts
    high, panels = stop - start, advance(pointer(scratch), part * room)
    middle, target = advance(pointer(dhidden), start * rank), advance(pointer(dx), start * inputs)
    multiply(
        middle, rank, advance(pointer(dout), start * width + first), width, False, pointer(b), rank, False, high, rank,
        outputs, null(), 0, null(), null(), panels, room,
    )
    for i in range(high * rank):
        middle[i] *= scale
    multiply(
        target, inputs, middle, rank, False, pointer(a), inputs, False, high, inputs, rank, target, inputs, null(),
        null(), panels, room,
    )


@inline
def _weights_part(da, db, dhidden, dout, hidden, x, first, scratch, part, parts):
    """The columns of da and the rows of db of thread number `part` of `parts`."""
    rows, inputs, rank, outputs = x.shape[0], x.shape[1], da.shape[0], db.shape[0]
    width, room = dout.shape[1], scratch.shape[1]
    panels = advance(pointer(scratch), part * room)
    start, stop = inputs * part // parts, inputs * (part + 1) // parts
    target = advance(pointer(da), start)
    multiply(
        target, inputs, pointer(dhidden), rank, True, advance(pointer(x), start), inputs, False, rank, stop - start,
        rows, target, inputs, null(), null(), panels, room,
    )
    start, stop = outputs * part // parts, outputs * (part + 1) // parts
    target = advance(pointer(db), start * rank)
    multiply(
        target, rank, advance(pointer(dout), first + start), width, True, pointer(hidden), rank, False, stop - start,
        rank, rows, target, rank, null(), null(), panels, room,
    )


@kernel(parallel=True, calls=linked)
def lora_backward(dx, da, db, dhidden, dout, hidden, x, a, b, first, scale, scratch):
    """Gradients of lora_forward.

    dx      (N, I)  added to
    da, db  (R, I), (O, R)  added to
    dhidden (N, R)  written
    dout    (N, W)
    hidden, x, a, b, first, scale, scratch  as in forward
    """
    parts = 1 if x.size * a.shape[0] < SERIAL_WORK else scratch.shape[0]
    rate = np.float32(scale)
    if parts == 1:
        _rows_part(dx, dhidden, dout, a, b, first, rate, scratch, 0, 1)
        _weights_part(da, db, dhidden, dout, hidden, x, first, scratch, 0, 1)
        return
    for part in prange(parts):
        _rows_part(dx, dhidden, dout, a, b, first, rate, scratch, part, parts)
    for part in prange(parts):
        _weights_part(da, db, dhidden, dout, hidden, x, first, scratch, part, parts)
