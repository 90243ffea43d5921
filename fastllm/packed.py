"""Matrices as model files store them: float32, float16, bfloat16, or quantised, in blocks of a few bits per weight.

A row is a sequence of blocks; each block holds a fixed number of weights in a fixed number of bytes. Names and numbers
are those of GGUF (github.com/ggml-org/ggml, docs/gguf.md); `kernels/blocks.py` has the layout of each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Kind(NamedTuple):
    """A storage type: `block` weights in `size` bytes. `number` is GGUF's id for it."""

    name: str
    number: int
    block: int
    size: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights, which must be a multiple of `block`."""
        return columns // self.block * self.size


KINDS = {
    kind.name: kind
    for kind in (
        Kind("F32", 0, 1, 4),
        Kind("F16", 1, 1, 2),
        Kind("Q4_0", 2, 32, 18),
        Kind("Q4_1", 3, 32, 20),
        Kind("Q5_0", 6, 32, 22),
        Kind("Q5_1", 7, 32, 24),
        Kind("Q8_0", 8, 32, 34),
        Kind("Q4_K", 12, 256, 144),
        Kind("Q5_K", 13, 256, 176),
        Kind("Q6_K", 14, 256, 210),
        Kind("BF16", 30, 1, 2),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A matrix (rows, columns) stored in one of KINDS.

    data  (rows, bytes per row) uint8, C-contiguous; usually a read-only view of a memory-mapped file
    """

    data: np.ndarray
    kind: Kind

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in weights."""
        rows, size = self.data.shape
        return rows, size // self.kind.size * self.kind.block

    @property
    def nbytes(self) -> int:
        """Size of the data, in bytes."""
        return self.data.nbytes
