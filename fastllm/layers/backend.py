"""What does the arithmetic: the compiled kernels ("numba") or their NumPy twins ("numpy")."""

from __future__ import annotations

import importlib
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..config import STEP_ROWS
from ..interrupts import uninterrupted
from ..machine import check_compiler

BACKENDS = {"numba": "fastllm.kernels", "numpy": "fastllm.kernels.reference"}
_SHORT = partial(uninterrupted, is_short=True)


def _kernels(name: str) -> ModuleType:
    """The module of a backend. Ctrl-C interrupts neither its import nor, from then on, a compilation."""
    with uninterrupted(is_short=True):
        module = importlib.import_module(BACKENDS[name])
        if name == "numba":
            importlib.import_module(f"{BACKENDS[name]}.jit").guard_compilation(_SHORT)
    return module


class Backend:
    """Kernels with their scratch.

    kernels  a module with every name of the kernel contract; a stand-in while a pass is recorded: see recording.py
    dtype    float32; the twins also work in float64, for gradient checks
    Raises ValueError for an unknown name or a dtype it can't do, ConfigError where the compiler is switched off.
    """

    def __init__(self, name: str, head_size: int, width: int, dtype: DTypeLike = np.float32) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend must be 'numba' or 'numpy'; got {name!r}; choose one of them")
        try:
            self.dtype = np.dtype(dtype)
        except TypeError:
            raise ValueError(f"dtype must be float32 or float64; got {dtype!r:.40}; choose one of them") from None
        if self.dtype not in ((np.float32,) if name == "numba" else (np.float32, np.float64)):
            raise ValueError(
                f"backend 'numba' computes in float32, 'numpy' in float32 or float64; got {self.dtype}; "
                "choose one of these"
            )
        if name == "numba":
            check_compiler()
        self.name = name
        self.kernels: ModuleType = _kernels(name)
        self._module = self.kernels
        self.calls_may_overlap: bool = name != "numba" or self.kernels.calls_may_overlap()  # on several threads
        # Passed in place of an optional array that is absent.
        self.no_row = np.empty(0, self.dtype)
        self.no_matrix = np.empty((0, 0), self.dtype)
        self._head_size = head_size
        if name == "numba":
            chunks = self.kernels.MAX_CHUNKS
            self.partials = np.empty((chunks, 2, width), np.float32)
            self.head_partials = np.empty((chunks, 2, head_size), np.float32)
            self.rms_partials = np.empty((chunks, 1, width), np.float32)
            self.norm_partials = np.empty(chunks, np.float64)
        else:  # the twins take scratch arguments and ignore them
            self.partials = self.rms_partials = self.head_partials = np.empty((0, 0, 0), self.dtype)
            self.norm_partials = np.empty(0, np.float64)
        self._columns = 1
        self._decode_scratch: tuple[int, Any] = 0, self.no_matrix

    def reserve(self, columns: int) -> None:
        """Let the scratch have room for rows of a packed matrix with this many columns."""
        self._columns = max(self._columns, columns)

    # Made when first used: a program that only generates does not need all of them. By `_module`, not by `kernels`,
    # which may be recording: making them is no part of a pass.

    @cached_property
    def matmul_scratch(self) -> np.ndarray:
        """Scratch of the matrix products."""
        return self._module.matmul_scratch() if self.name == "numba" else self.no_matrix

    @cached_property
    def attention_scratch(self) -> np.ndarray:
        """Scratch of attention."""
        return self._module.attention_scratch(self._head_size) if self.name == "numba" else self.no_matrix

    def attention_pieces(self, width: int) -> int:
        """Columns of `dq_pieces`, scratch of attention_backward, for queries of `width` columns in all heads."""
        return self._module.attention_pieces(width) if self.name == "numba" else 0

    @cached_property
    def packed_scratch(self) -> np.ndarray:
        """Scratch of the products with packed weights."""
        return self._module.packed_scratch(self._columns, STEP_ROWS) if self.name == "numba" else self.no_matrix

    def decode_scratch(self, rows: int, heads: int, kv_heads: int) -> Any:
        """Scratch of attention_decode for `rows` new tokens; all layers have the same heads and share it."""
        if self.name == "numba" and rows > self._decode_scratch[0]:
            rows = max(rows, STEP_ROWS)
            self._decode_scratch = rows, self._module.decode_scratch(rows, heads, kv_heads, self._head_size)
        return self._decode_scratch[1]
