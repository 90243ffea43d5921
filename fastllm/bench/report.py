"""Measurements as records, one for each contender of each benchmark, ready for JSON and tables."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from .. import atomic, machine
from ..kernels.jit import get_num_threads
from .timing import Benchmark, Timing


@dataclass(frozen=True)
class Record:
    """One contender's result.

    case               name of the benchmark
    first_ms           the first call: compilation, or loading from the cache, and one run
    median_ms          of one run, with p20_ms and p80_ms, over the rounds; None if it failed
    ratio              the baseline's median / this one's: above 1 is faster
    gflops             1e9 floating-point operations per second; None: not counted
    gbytes_per_s       1e9 bytes of unavoidable memory traffic per second; None: not counted
    error              why it was not timed
    """

    case: str
    contender: str
    first_ms: float | None = None
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    ratio: float | None = None
    gflops: float | None = None
    gbytes_per_s: float | None = None
    error: str | None = None


def records(benchmark: Benchmark, timings: dict[str, Timing]) -> list[Record]:
    """A record for each contender, in the benchmark's order."""
    baseline = timings[benchmark.contenders[-1].name].median
    return [
        Record(
            case=benchmark.name,
            contender=name,
            first_ms=timing.first * 1e3,
            median_ms=timing.median * 1e3,
            p20_ms=timing.p20 * 1e3,
            p80_ms=timing.p80 * 1e3,
            ratio=baseline / timing.median,
            gflops=benchmark.flops / timing.median / 1e9 if benchmark.flops else None,
            gbytes_per_s=benchmark.bytes / timing.median / 1e9 if benchmark.bytes else None,
        )
        for name, timing in timings.items()
    ]


def failure(benchmark: Benchmark, error: Exception) -> list[Record]:
    """A record of the error for each contender, without times."""
    return [Record(benchmark.name, contender.name, error=str(error)) for contender in benchmark.contenders]


def describe_machine() -> str:
    """What times depend on, in one line: processor, threads, versions."""
    return machine.describe(get_num_threads(), "numpy", "numba")


def write_json(path: str | os.PathLike[str], results: Iterable[Record]) -> None:
    """Write records as a JSON list, atomically; each names the machine it was measured on."""
    described = describe_machine()
    rows = [asdict(record) | {"machine": described} for record in results]
    atomic.write_json(path, rows)
