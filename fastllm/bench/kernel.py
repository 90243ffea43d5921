"""Benchmarks of a kernel against its twin, from the table of cases."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .. import kernels
from ..kernels import reference
from ..kernels.cases import Case, with_scratch
from ..memory import aligned
from .timing import Benchmark, CheckError, Contender

Arguments = dict[str, Any]


def check_kernel(case: Case, size: dict[str, Any]) -> None:
    """Raise CheckError unless the kernel equals its twin in float64, within the case's tolerance."""
    inputs = case.build(np.random.default_rng(0), **size)
    results = _call(kernels, case, with_scratch(_copy(inputs, np.float32), kernels))
    for name, expected in _call(reference, case, _copy(inputs, np.float64)).items():
        typical = 1.0 if expected.size <= 1 else float(np.sqrt(np.square(expected).mean()))
        allowed = case.kernel_tolerance(size) * (typical + np.abs(expected))
        wrong = ~(np.abs(results[name] - expected) <= allowed)  # written so that NaN is wrong
        if wrong.any():
            raise CheckError(
                f"{case.kernel} must equal its float64 twin to {case.kernel_tolerance(size):.1e}; in {name}, "
                f"{wrong.sum()} of {wrong.size} numbers don't; this is a bug, please report it"
            )


def kernel_benchmark(case: Case, label: str) -> Benchmark:
    """A case at the realistic size of that name."""
    size = case.realistic[label]
    inputs = case.build(np.random.default_rng(0), **size)
    return Benchmark(
        name=f"{case.kernel} {label}",
        contenders=(
            _contender("numba", kernels, case, with_scratch(inputs, kernels)),
            _contender("numpy", reference, case, inputs),
        ),
        check=partial(check_kernel, case, size),
        flops=case.floating_point_operations(size),
        bytes=case.bytes(inputs, size),
    )


def _contender(name: str, module: ModuleType, case: Case, inputs: Arguments) -> Contender:
    arguments = _copy(inputs, np.float32)
    changed = {name: arguments[name].copy() for name in case.updated}

    def reset() -> None:
        for key, original in changed.items():
            arguments[key][...] = original

    return Contender(name, partial(getattr(module, case.kernel), *arguments.values()), reset)


def _call(module: ModuleType, case: Case, arguments: Arguments) -> dict[str, np.ndarray]:
    """The arrays that the kernel wrote, by name, and its return value as "returned"."""
    returned = getattr(module, case.kernel)(*arguments.values())
    results = {name: arguments[name] for name in (*case.written, *case.updated)}
    return results if returned is None else results | {"returned": np.array(returned)}


def _copy(arguments: Arguments, dtype: DTypeLike) -> Arguments:
    """The arguments with their arrays copied, float32 arrays as `dtype`."""

    def copy(value: np.ndarray) -> np.ndarray:
        array = aligned(value.shape, dtype if value.dtype == np.float32 else value.dtype)
        array[...] = value
        return array

    return {name: copy(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
