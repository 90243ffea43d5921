"""A weight's rows on their way into a file: in the order that its RoPE asks for, in the kind of number that it has.

RoPE turns pairs of a head's columns, which are rows of the query's and key's weights: neighbours (2i, 2i + 1), or the
halves (i, i + D/2). From one to the other, rows only change places, head by head. All is done in pieces, so that a
file is written in little memory, whatever its size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..packed import Packed
from ..quantize import PIECE, dequantize, quantize

TURNED = re.compile(r"blocks\.\d+\.attention\.(query|key)(_norm)?\.(weight|bias)")  # what RoPE turns

Weight = NDArray[np.floating] | Packed
Progress = Callable[[int, int], object]  # bytes written so far, and in all


def row_order(config: ModelConfig, name: str, rows: int, *, interleaved: bool) -> NDArray[np.intp] | None:
    """Which row of our weight stands at each place where RoPE is on pairs, or on halves; None where all stay.

    Halves take each head's rows (0, 1, 2, 3, ...) as (0, 2, ..., 1, 3, ...); pairs turn that around.
    """
    if config.positions != "rope" or config.rope_interleaved == interleaved or not TURNED.fullmatch(name):
        return None
    assert config.head_size is not None
    cut = (-1, 2, config.head_size // 2) if interleaved else (-1, config.head_size // 2, 2)
    return np.arange(rows).reshape(cut).swapaxes(1, 2).reshape(-1)


def pieces(weight: Weight, order: NDArray[np.intp] | None, kind: str) -> Iterator[NDArray[np.uint8]]:
    """The bytes (rows, bytes of a row) of a weight in a kind, some rows at a time; of a vector, one row.

    A matrix that is of the kind already keeps its bytes. Raises ValueError for what the kind can't hold.
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
