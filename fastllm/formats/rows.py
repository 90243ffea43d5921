"""Converts a weight for a file: its rows to the order that the file's RoPE needs, its numbers to the file's kind.

RoPE rotates pairs of a head's columns, which are rows of the query and key weights: neighbours (2i, 2i + 1), or halves
(i, i + D/2). Between the two, the rows of each head are permuted. Conversion is done in pieces, to need little memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..packed import Packed
from ..quantize import PIECE, dequantize, quantize

TURNED = re.compile(r"blocks\.\d+\.attention\.(query|key)(_norm)?\.(weight|bias)")  # parameters that RoPE concerns

Weight = NDArray[np.floating] | Packed
Progress = Callable[[int, int], object]  # called with bytes written so far and in total


def row_order(config: ModelConfig, name: str, rows: int, *, interleaved: bool) -> NDArray[np.intp] | None:
    """The row of our weight for each row in a file, by whether its RoPE is on pairs; None if the order is the same.

    From pairs to halves, each head's rows are taken in the order 0, 2, ..., 1, 3, ...; to pairs, the other way round.
    """
    if config.positions != "rope" or config.rope_interleaved == interleaved or not TURNED.fullmatch(name):
        return None
    assert config.head_size is not None
    cut = (-1, 2, config.head_size // 2) if interleaved else (-1, config.head_size // 2, 2)
    return np.arange(rows).reshape(cut).swapaxes(1, 2).reshape(-1)


def pieces(weight: Weight, order: NDArray[np.intp] | None, kind: str) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a weight in a kind, (rows, bytes per row) uint8, some rows at a time; a vector is one row.

    order  from row_order; None: as it is

    The bytes of a matrix that has the kind already are copied. Raises ValueError for numbers that the kind can't hold.
    """
    if not isinstance(weight, Packed) and weight.ndim == 1:
        yield quantize((weight if order is None else weight[order])[None], kind).data
        return
    rows, columns = weight.shape
    step = max(1, PIECE // max(1, columns))
    for begin in range(0, rows, step):
        where: slice | NDArray[np.intp] = slice(begin, begin + step) if order is None else order[begin : begin + step]
        if not isinstance(weight, Packed):
            yield quantize(weight[where], kind).data
        elif weight.kind.name == kind:
            yield weight.data[where]
        else:
            yield quantize(dequantize(Packed(weight.data[where], weight.kind)), kind).data
