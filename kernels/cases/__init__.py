"""One table for tests and benchmarks: for every kernel its arguments, sizes, tolerance and cost.

Each builder in these files is named after its kernel and makes its arguments, in call order and in float32, from a
random generator and a size. Arrays to be written start as NaN (integers as -1), arrays to be added to or changed in
place as random numbers, so that a kernel that skips an element, or overwrites where it should add, is caught. Sizes are
named after the kernels' shapes: rows N, width C or F, vocabulary V, parameters P.

    case = CASES["softmax_forward"]
    arguments = case.build(np.random.default_rng(0), **case.sizes[0])
    reference.softmax_forward(**arguments)
"""

from . import attention, elementwise, optimizers, packed, products, rows  # noqa: F401  each enters its cases in CASES
from .case import CASES, SCRATCH_ARGUMENTS, Case, Scratch, with_scratch

__all__ = ["CASES", "SCRATCH_ARGUMENTS", "Case", "Scratch", "with_scratch"]
