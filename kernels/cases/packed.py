"""Cases of the linear maps whose weights stay in a file's format."""

import numpy as np

from ..reference.packed import KINDS
from ..rounded import ROUNDED
from .case import Scratch, case, integers, normal, optional, unwritten

# For each kind, the bytes of a block at which a float16 begins.
SCALES = {1: (0,), 8: (0,), 2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 12: (0, 2), 13: (0, 2), 14: (208,)}


def weights(rng, kind, rows, columns):
    """A random matrix of a kind, (rows, bytes of a row) uint8, read-only like a mapped file's."""
    data = _bytes(rng, kind, rows, columns)
    data.flags.writeable = False
    return data


def _bytes(rng, kind, rows, columns):
    """Random bytes, but with small numbers where a block has float16 (at SCALES), and normal float32 or bfloat16."""
    block, size, _ = KINDS[kind]
    if kind == 0:
        return normal(rng, rows, columns).view(np.uint8)
    if kind == 30:
        upper = normal(rng, rows, columns).view(np.uint32) >> 16
        return upper.astype(np.uint16).view(np.uint8)
    data = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scale = rng.normal(0, 0.02, (rows, columns // block, 1)).astype(np.float16)
        data[:, :, place : place + 2] = scale.view(np.uint8)
    return data.reshape(rows, -1)


def matrices(rng, kinds, outputs, columns):
    """Three matrices and the numbers of their kinds; absent matrices are empty, of kind 0."""
    given = [weights(rng, kind, rows, columns) for kind, rows in zip(kinds, outputs, strict=True)]
    missing, nothing = 3 - len(given), np.empty((0, 0), np.uint8)
    nothing.flags.writeable = False
    return (*given, *[nothing] * missing), (*kinds, *[0] * missing)


ODD = [
    {"rows": 1, "columns": 1, "kinds": (0,), "outputs": (1,)},
    {"rows": 5, "columns": 65, "kinds": (0, 1, 30), "outputs": (7, 31, 1), "residual": True},
    {"rows": 3, "columns": 300, "kinds": (30,), "outputs": (130,), "bias": False},
    {"rows": 15, "columns": 1100, "kinds": (30, 0, 1), "outputs": (6, 33, 3), "residual": True},
    {"rows": 7, "columns": 96, "kinds": (8, 2, 3), "outputs": (33, 1, 40)},
    {"rows": 6, "columns": 320, "kinds": (6, 7), "outputs": (65, 7), "bias": False, "residual": True},
    {"rows": 1, "columns": 512, "kinds": (12, 13, 14), "outputs": (33, 33, 33)},
    {"rows": 33, "columns": 256, "kinds": (14, 12, 8), "outputs": (31, 64, 1), "residual": True},
]
ONE_ROW = {
    "smollm2 1x576x1536 Q8_0": {"rows": 1, "columns": 576, "kinds": (8, 8), "outputs": (1536, 1536)},
    "smollm2 1x576x1536 Q4_0": {"rows": 1, "columns": 576, "kinds": (2, 2), "outputs": (1536, 1536)},
}
MANY_ROWS = {
    "smollm2 128x576x1536 Q8_0": {"rows": 128, "columns": 576, "kinds": (8, 8), "outputs": (1536, 1536)},
    "smollm2 128x576x1536 Q4_0": {"rows": 128, "columns": 576, "kinds": (2, 2), "outputs": (1536, 1536)},
}


def packed_bytes(kind, rows, columns):
    weights, size, _ = KINDS[kind]
    return rows * columns // weights * size


def bytes_moved(s):
    packed = (packed_bytes(kind, rows, s.columns) for kind, rows in zip(s.kinds, s.outputs, strict=True))
    return sum(packed) + 4 * s.rows * (s.columns + sum(s.outputs))


def flops(s):
    return 2 * s.rows * s.columns * sum(s.outputs)


def rounding(s):
    """x is rounded to 16 bits, relative to the largest of each sixteen: 1.8e-5 of a typical result (rounded.py)."""
    return 1.8e-5 if any(kind in ROUNDED for kind in s.kinds) else 0.0


@case(
    ODD,
    ONE_ROW,
    terms=lambda s: s.columns,
    flops=flops,
    written=("out",),
    bytes_moved=bytes_moved,
    rounding=rounding,
)
def packed_rows_forward(rng, rows, columns, kinds, outputs, bias=True, residual=False):
    matrix, numbers = matrices(rng, kinds, outputs, columns)
    return {
        "out": unwritten(rows, sum(outputs)),
        "x": normal(rng, rows, columns),
        "weights": matrix,
        "kinds": numbers,
        "bias": optional(rng, bias, sum(outputs)),
        "residual": optional(rng, residual, rows, sum(outputs)),
        "scratch": Scratch.PACKED,
    }


@case(ODD, MANY_ROWS, terms=lambda s: s.columns, flops=flops, written=("out",), bytes_moved=bytes_moved)
def packed_forward(rng, rows, columns, kinds, outputs, bias=True, residual=False):
    return packed_rows_forward(rng, rows, columns, kinds, outputs, bias, residual)


@case(
    ODD,
    MANY_ROWS,
    terms=lambda s: sum(s.outputs),
    flops=flops,
    written=("dx",),
    bytes_moved=bytes_moved,
    forward="packed_forward",
)
def packed_backward(rng, rows, columns, kinds, outputs, bias=True, residual=False):
    forward = packed_forward(rng, rows, columns, kinds, outputs, bias, residual)
    return {
        "dx": unwritten(rows, columns),
        "dout": normal(rng, rows, sum(outputs)),
        "weights": forward["weights"],
        "kinds": forward["kinds"],
        "residual": optional(rng, residual, rows, columns),
        "scratch": Scratch.PACKED,
    }


@case(
    [{"rows": 7, "columns": 512, "kind": kind} for kind in KINDS] + [{"rows": 1, "columns": 37, "kind": 0}],
    {"smollm2 256x576 Q8_0": {"rows": 256, "columns": 576, "kind": 8}},
    flops=lambda s: 0,
    written=("out",),
    bytes_moved=lambda s: 4 * s.rows * s.columns + packed_bytes(s.kind, s.rows, s.columns),
)
def packed_embedding_forward(rng, rows, columns, kind):
    return {
        "out": unwritten(rows, columns),
        "ids": integers(rng, 50, rows),
        "weight": weights(rng, kind, 50, columns),
        "kind": kind,
    }
