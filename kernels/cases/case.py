"""The class of a case, the table of all cases, and helpers to build their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Arguments = dict[str, Any]
Size = dict[str, Any]
Formula = Callable[[SimpleNamespace], int]  # takes a size, whose keys are read as attributes

SCRATCH_ARGUMENTS = ("scratch", "partials", "dq_pieces")  # arguments whose contents mean nothing after a call


class Scratch(Enum):
    """A placeholder for scratch that only the compiled package can allocate."""

    MATMUL = auto()
    ATTENTION = auto()
    PACKED = auto()
    DECODE = auto()


def with_scratch(arguments: Arguments, kernels: ModuleType) -> Arguments:
    """The arguments, with a `Scratch` placeholder replaced by scratch from `kernels`, the compiled package."""
    if arguments.get("scratch") is Scratch.MATMUL:
        return arguments | {"scratch": kernels.matmul_scratch()}
    if arguments.get("scratch") is Scratch.ATTENTION:
        head_size = arguments["out"].shape[1] // arguments["heads"]
        return arguments | {"scratch": kernels.attention_scratch(head_size)}
    if arguments.get("scratch") is Scratch.PACKED:
        x = arguments["x"] if "x" in arguments else arguments["dx"]
        return arguments | {"scratch": kernels.packed_scratch(x.shape[1], len(x))}
    if arguments.get("scratch") is Scratch.DECODE:
        rows, heads = len(arguments["out"]), arguments["heads"]
        size = arguments["out"].shape[1] // heads
        return arguments | {"scratch": kernels.decode_scratch(rows, heads, arguments["kv_heads"], size)}
    return arguments


@dataclass(frozen=True)
class Case:
    """How to call one kernel, how exact it must be, and what it costs."""

    kernel: str
    build: Callable[..., Arguments]  # (rng, **size) -> arguments in call order
    sizes: list[Size]
    realistic: dict[str, Size]
    written: tuple[str, ...]  # overwritten
    updated: tuple[str, ...]  # added to, or changed in place
    terms: Formula  # length of the longest sum that a number of the result is made of
    flops: Formula  # an exponential, root or division counts as one
    bytes_moved: Formula | None  # memory traffic, if it is not as in `bytes`
    forward: str | None  # of a backward kernel: the kernel whose gradient it computes
    rounding: Callable[[SimpleNamespace], float]  # error, relative to the result, of roundings that the twin lacks

    def tolerance(self, size: Size) -> float:
        """Allowed error of a float32 result, relative to each number and to their root mean square.

        Adding n terms of similar size in float32 leaves a relative error near eps * sqrt(n), as roundings behave
        like random ones. Eight times that is allowed, as a result comes from a few such sums and functions.
        """
        return 8 * float(np.finfo(np.float32).eps) * self.terms(SimpleNamespace(**size)) ** 0.5

    def kernel_tolerance(self, size: Size) -> float:
        """Allowed error of the compiled kernel, which may round numbers that its twin does not."""
        return self.tolerance(size) + 8 * self.rounding(SimpleNamespace(**size))

    def floating_point_operations(self, size: Size) -> int:
        return self.flops(SimpleNamespace(**size))

    def bytes(self, arguments: Arguments, size: Size) -> int:
        """Bytes that must at least be read or written: each array once, updated ones twice, scratch not at all."""
        if self.bytes_moved is not None:
            return self.bytes_moved(SimpleNamespace(**size))
        return sum(
            value.nbytes * (2 if name in self.updated else 1)
            for name, value in arguments.items()
            if isinstance(value, np.ndarray) and name not in SCRATCH_ARGUMENTS
        )


ROWS = [
    {"rows": 1, "width": 1},
    {"rows": 7, "width": 65},
    {"rows": 65, "width": 7},
    {"rows": 131, "width": 130},
]
ROWS_REALISTIC = {
    "rustgpt 78x128": {"rows": 78, "width": 128},
    "nano 1024x384": {"rows": 1024, "width": 384},
    "gpt2 1024x768": {"rows": 1024, "width": 768},
}

CASES: dict[str, Case] = {}


def case(
    sizes: list[Size],
    realistic: dict[str, Size],
    *,
    flops: Formula,
    terms: Formula = lambda s: 1,
    written: tuple[str, ...] = (),
    updated: tuple[str, ...] = (),
    bytes_moved: Formula | None = None,
    forward: str | None = None,
    kernel: str | None = None,
    rounding: Callable[[SimpleNamespace], float] = lambda s: 0.0,
) -> Callable:
    """A decorator that enters a builder of arguments in CASES, under its own name unless `kernel` is given."""

    def enter(build: Callable[..., Arguments]) -> Callable[..., Arguments]:
        name = kernel or build.__name__
        CASES[name] = Case(
            name, build, sizes, realistic, written, updated, terms, flops, bytes_moved, forward, rounding
        )
        return build

    return enter


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def optional(rng: np.random.Generator, given: bool, *shape: int) -> np.ndarray:
    """An optional argument: an array of normal numbers if given, else an empty one."""
    return normal(rng, *shape) if given else np.empty((0,) * len(shape), np.float32)


def unwritten(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def integers(rng: np.random.Generator, high: int, count: int) -> np.ndarray:
    return rng.integers(0, high, count, dtype=np.int32)
