"""Results of a race, as lines for the terminal and as JSON for docs/performance.md."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from typing import Any

from .. import atomic, machine
from ..figures import spread, three_digits
from .race import Race, Result

ROW = "{:<20} {:>11} {:>12} {:>20} {:>7} {:>7} {:>6} {:>20}"
HEAD = ROW.format("case", "eager ms", "compiled ms", "fastllm ms", "ratio", "target", "peak", "MB fastllm / eager")


def median(race: Race, contender: str) -> float:
    """Median seconds of a contender's step."""
    return statistics.median(_result(race, contender).seconds)


def ratio(race: Race) -> float:
    """How many times as long as fastllm the better PyTorch takes."""
    others = [result.contender for result in race.results if result.contender != "fastllm"]
    return min((median(race, other) for other in others), default=float("nan")) / median(race, "fastllm")


def share_of_peak(race: Race, contender: str = "fastllm") -> float:
    """Floating-point operations per second, as a share of the machine's peak."""
    return race.flops / median(race, contender) / 1e9 / _limit(race, "gflops")


def row(race: Race) -> str:
    """A line under HEAD."""
    _, low, high = spread(_result(race, "fastllm").seconds)
    memory = {result.contender: result.peak_bytes / 1e6 for result in race.results}
    times = [three_digits(median(race, name) * 1e3) if name in memory else "-" for name in ("eager", "compiled")]
    return ROW.format(
        race.name,
        *times,
        f"{three_digits(median(race, 'fastllm') * 1e3)} ({three_digits(low * 1e3)}-{three_digits(high * 1e3)})",
        f"{ratio(race):.2f}x",
        f"{race.target:g}x",
        f"{share_of_peak(race):.0%}",
        f"{memory['fastllm']:.0f} / {memory.get('eager', float('nan')):.0f}",
    )


def describe(threads: int) -> str:
    """The machine and the versions, in one line."""
    return machine.describe(threads, "numpy", "numba", "torch")


def write_json(path: str | os.PathLike[str], races: Iterable[Race], failures: dict[str, str], threads: int) -> None:
    """Write all results, including those of each round, atomically."""
    text = json.dumps({"machine": describe(threads), "cases": [as_dict(race) for race in races], "failed": failures})
    atomic.write_text(path, text + "\n")


def as_dict(race: Race) -> dict[str, Any]:
    """A race's results, ready for JSON."""
    contenders = {}
    for result in race.results:
        middle, low, high = spread(result.seconds)
        contenders[result.contender] = {
            "median_ms": middle * 1e3,
            "p20_ms": low * 1e3,
            "p80_ms": high * 1e3,
            "share_of_peak": share_of_peak(race, result.contender),
            "peak_mb": result.peak_bytes / 1e6,
            "rounds_ms": [seconds * 1e3 for seconds in result.seconds],
        }
    limits = {name: _limit(race, name) for name in race.limits[0]}
    return {
        "case": race.name,
        "target": race.target,
        "ratio": ratio(race),
        "gflop": race.flops / 1e9,
        "limits": limits,
        "contenders": contenders,
    }


def _result(race: Race, contender: str) -> Result:
    return next(result for result in race.results if result.contender == contender)


def _limit(race: Race, name: str) -> float:
    return statistics.median(limits[name] for limits in race.limits)
