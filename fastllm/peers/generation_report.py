"""Results of a race of generators, as lines for the terminal and as JSON."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from .. import atomic, machine
from ..figures import spread
from .generation_race import TOLERANCES, Outcome

VERSIONS = ("numpy", "numba", "llama_cpp_python", "torch", "transformers")
ROW = "{:<5} {:<13} {:>20} {:>22} {:>14} {:>9} {:>10} {:>9}"
HEAD = ROW.format(
    "kind", "contender", "decode tokens/s", "prompt tokens/s", "8 at once", "peak MB", "beyond MB", "logits"
)


def row(outcome: Outcome) -> str:
    """A line under HEAD."""
    figures = figures_of(outcome)
    together = "-"
    if outcome.together:
        together = f"{figures['together_rate']['median']:.0f} ({figures['together_ratio']:.2f}x)"
    return ROW.format(
        outcome.kind,
        outcome.contender,
        _spread(figures["decode"]),
        _spread(figures["prompt"]),
        together,
        f"{outcome.memory['peak'] / 1e6:.0f}",
        f"{figures['beyond_bytes'] / 1e6:.0f}",
        "-" if outcome.error is None else f"{outcome.error:.0e}",
    )


def ratios(outcomes: Sequence[Outcome]) -> list[str]:
    """How many times as fast as each other contender fastllm is, by kind."""
    lines = []
    ours = {outcome.kind: outcome for outcome in outcomes if outcome.contender == "fastllm"}
    for outcome in outcomes:
        if outcome.contender == "fastllm" or outcome.kind not in ours:
            continue
        decoding, reading = (
            statistics.median(getattr(outcome, name)) / statistics.median(getattr(ours[outcome.kind], name))
            for name in ("decoding", "reading")
        )
        lines.append(
            f"{outcome.kind}: fastllm decodes {decoding:.2f}x as fast as {outcome.contender}, "
            f"and reads prompts {reading:.2f}x as fast"
        )
    return lines


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """Tokens per second, each as median, p20 and p80; and the bytes beyond file and cache."""
    memory, case = outcome.memory, outcome.case
    figures: dict[str, Any] = {
        "decode": _rates(outcome.decoding, 1),
        "prompt": _rates(outcome.reading, case.read),
        "beyond_bytes": memory["peak"] - memory["file"] - memory["cache"],
    }
    if outcome.together:
        figures["alone_rate"] = _rates(outcome.alone, 1)
        figures["together_rate"] = _rates(outcome.together, case.together)
        figures["together_ratio"] = figures["together_rate"]["median"] / figures["alone_rate"]["median"]
    return figures


def write_json(
    path: str | os.PathLike[str],
    outcomes: Iterable[Outcome],
    model: dict[str, Any],
    threads: int,
    failed: dict[str, str],
    left_out: Sequence[str],
) -> None:
    """Write all results, including those of each round, atomically.

    model  its description in words and as a configuration
    """
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    rows = [asdict(outcome) | figures_of(outcome) for outcome in outcomes]
    for row in rows:
        del row["case"]["path"]  # of a temporary file
    result = {
        "machine": machine.describe(threads, *VERSIONS),
        "versions": versions,
        "threads": threads,
        "model": model,
        "tolerances": TOLERANCES,
        "rows": rows,
        "failed": failed,
        "left_out": list(left_out),
    }
    atomic.write_json(path, result)


def _rates(seconds: Sequence[float], tokens: int) -> dict[str, float]:
    return dict(zip(("median", "p20", "p80"), spread([tokens / value for value in seconds]), strict=True))


def _spread(rates: dict[str, float]) -> str:
    return f"{rates['median']:.1f} ({rates['p20']:.1f}-{rates['p80']:.1f})"
