"""Timing contenders fairly in one process.

Contenders take turns in blocks of calls, not call by call. The kernels run on Numba's threads and NumPy's matrix
product on BLAS's; for 25 to 100 ms after its last work, each pool's threads spin and take the cores away from the
other's. Call by call, a kernel of 3 us and a product of 59 us take 26 ms together, which says nothing about either. So
a block belongs to one contender. It begins with a pause until the other's threads have gone to sleep, and with one call
that is not timed, which brings back data and threads.

Blocks alternate because a CPU's clock varies: a slow second then affects all contenders alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import FastllmError
from ..figures import spread

PAUSE = 0.01  # seconds between two checks whether threads still spin
MOST_PAUSES = 100
MOST_CALLS = 500  # in a block; `scale` shrinks its numbers with each call, and subnormal numbers would be slow


class CheckError(FastllmError):
    """A contender computes wrong results, so its time would mean nothing."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    run    does it once
    reset  restores what run has changed; called before each block
    """

    name: str
    run: Callable[[], object]
    reset: Callable[[], object] = _nothing


@dataclass(frozen=True)
class Benchmark:
    """Some work, and the contenders that do it.

    contenders  those to compare, and last the baseline
    check       raises CheckError unless all of them compute the same
    flops       floating-point operations of one run; 0: unknown
    bytes       unavoidable memory traffic of one run; 0: unknown
    """

    name: str
    contenders: tuple[Contender, ...]
    check: Callable[[], None]
    flops: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: the very first, which compiles or loads kernels, and statistics over the rounds.

    A round's time is the mean over its block.
    """

    first: float
    median: float
    p20: float
    p80: float


def settle() -> None:
    """Wait until no thread of another contender spins any more: until this process hardly uses the CPU."""
    for _ in range(MOST_PAUSES):
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < PAUSE / 4:
            return


def measure(benchmark: Benchmark, rounds: int, block_seconds: float) -> dict[str, Timing]:
    """Check, then time a block of every contender in each round; timings by contender.

    block_seconds  about how long a contender's block lasts, at least one call

    Raises CheckError.
    """
    first = {contender.name: _seconds(contender, 1) for contender in benchmark.contenders}
    benchmark.check()
    calls = {}
    for contender in benchmark.contenders:
        once = _block(contender, 1)
        calls[contender.name] = max(1, min(MOST_CALLS, int(block_seconds / once)))
    blocks: dict[str, list[float]] = {contender.name: [] for contender in benchmark.contenders}
    for _ in range(rounds):
        for contender in benchmark.contenders:
            blocks[contender.name].append(_block(contender, calls[contender.name]))
    return {name: Timing(first[name], *spread(seconds)) for name, seconds in blocks.items()}


def _block(contender: Contender, calls: int) -> float:
    """Mean seconds per call in a block of this contender."""
    settle()
    contender.reset()
    contender.run()
    return _seconds(contender, calls)


def _seconds(contender: Contender, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        contender.run()
    return (time.perf_counter() - began) / calls
