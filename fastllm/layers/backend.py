"""Who does the arithmetic: the compiled kernels ("numba") or their NumPy twins ("numpy")."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

BACKENDS = {"numba": "fastllm.kernels", "numpy": "fastllm.kernels.reference"}


class Backend:
    """Kernels with their scratch.

    kernels  a module with every name of the kernel contract
    dtype    float32; the twins also work in float64, for gradient checks
    Raises ValueError for an unknown name or a dtype it can't do.
    """

    def __init__(self, name: str, head_size: int, width: int, dtype: DTypeLike = np.float32) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend must be 'numba' or 'numpy'; got {name!r}; choose one of them")
        self.dtype = np.dtype(dtype)
        if self.dtype not in ((np.float32,) if name == "numba" else (np.float32, np.float64)):
            raise ValueError(
                f"backend 'numba' computes in float32, 'numpy' in float32 or float64; got {self.dtype}; "
                "choose one of these"
            )
        self.name = name
        self.kernels: ModuleType = importlib.import_module(BACKENDS[name])
        # What stands for an array that is not there.
        self.no_row = np.empty(0, self.dtype)
        self.no_matrix = np.empty((0, 0), self.dtype)
        if name == "numba":
            self.matmul_scratch = self.kernels.matmul_scratch()
            self.attention_scratch = self.kernels.attention_scratch(head_size)
            self.partials = np.empty((64, 2, width), np.float32)
            self.rms_partials = np.empty((64, 1, width), np.float32)
        else:  # the twins take scratch arguments and ignore them
            self.matmul_scratch = self.attention_scratch = self.no_matrix
            self.partials = self.rms_partials = np.empty((0, 0, 0), self.dtype)
        self.norm_partials = np.empty(64, np.float64)
