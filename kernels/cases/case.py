"""What a case is, and what cases are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Arguments = dict[str, Any]
Size = dict[str, Any]
Formula = Callable[[SimpleNamespace], int]  # of a size, whose keys are read as attributes

ROOM = ("scratch", "partials", "dq_pieces")  # arguments that a kernel writes what it likes to


class Scratch(Enum):
    """Stands for scratch memory that only the compiled kernels know how to make."""

    MATMUL = auto()
    ATTENTION = auto()
    PACKED = auto()
    DECODE = auto()


def with_scratch(arguments: Arguments, kernels: ModuleType) -> Arguments:
    """The arguments with scratch from `kernels`, the compiled package, where a `Scratch` stood."""
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
    terms: Formula  # length of the longest sum behind a number of the result
    flops: Formula  # an exponential, root or division counts as one
    bytes_moved: Formula | None  # where it isn't every array once
    forward: str | None  # of a backward kernel: what it differentiates
    rounding: Callable[[SimpleNamespace], float]  # of what a kernel rounds on its way, relative to the result

    def tolerance(self, size: Size) -> float:
        """Allowed error of a float32 result, relative to each number and to their root mean square.

        Adding n terms of like size in float32 leaves a relative error near eps * sqrt(n), as the roundings
        are as good as random. Eight of those: a result stands at the end of a few such sums and functions.
        """
        return 8 * float(np.finfo(np.float32).eps) * self.terms(SimpleNamespace(**size)) ** 0.5

    def kernel_tolerance(self, size: Size) -> float:
        """That of the compiled kernel, which may round what its twin does not."""
        return self.tolerance(size) + 8 * self.rounding(SimpleNamespace(**size))

    def floating_point_operations(self, size: Size) -> int:
        return self.flops(SimpleNamespace(**size))

    def bytes(self, arguments: Arguments, size: Size) -> int:
        """Memory traffic that can't be avoided: each array once, updated ones twice, scratch not at all."""
        if self.bytes_moved is not None:
            return self.bytes_moved(SimpleNamespace(**size))
        return sum(
            value.nbytes * (2 if name in self.updated else 1)
            for name, value in arguments.items()
            if isinstance(value, np.ndarray) and name not in ROOM
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
    """Enter the decorated builder in the table, under its own name unless `kernel` is given."""

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
    """An optional array: where it isn't given, an empty one stands for it."""
    return normal(rng, *shape) if given else np.empty((0,) * len(shape), np.float32)


def unwritten(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def integers(rng: np.random.Generator, high: int, count: int) -> np.ndarray:
    return rng.integers(0, high, count, dtype=np.int32)
