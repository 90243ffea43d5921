"""A run's curves: read from metrics.jsonl, drawn in the terminal, written as SVG.

The x axis counts updates over all phases; a training value is the mean over the updates since the previous line.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import DataError
from ..records import no_json
from . import svg

QUANTITIES = ("loss", "perplexity", "accuracy")
POINTS = 600  # most in a curve; the eye can't tell more apart
WIDEST, HIGHEST = 100, 20  # characters, unless a size is given
SMALLEST = 8

Metrics = list[dict[str, Any]]
Point = tuple[float, float]


def read_metrics(path: str | os.PathLike[str]) -> Metrics:
    """The lines of a metrics.jsonl file, each a dictionary with at least "phase" and "step".

    A last line that was cut short when its writer was killed is left out.
    Raises OSError for a file that can't be read; DataError for an invalid line, naming it, or if there is none.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"metrics must be at {path}; got no such file; check the name") from None
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    metrics = []
    for number, line in enumerate(lines, 1):
        try:
            metrics.append(_check(json.loads(line.rstrip())))
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            said = no_json(error, line.decode(errors="replace"))
            raise DataError(f"{path}, line {number}: {said}; name a run's folder or its metrics.jsonl") from None
    if not metrics:
        raise DataError(f"{path} must hold at least one whole line; got none; train for longer")
    return metrics


def _check(line: Any) -> dict[str, Any]:
    if isinstance(line, dict) and isinstance(line.get("phase"), str):
        step = line.get("step")
        if isinstance(step, int) and 1 <= step < 1 << 53:
            return line
    raise DataError(f"a line must have a phase and a step from 1 on; got {line!r:.60}; name a run's metrics")


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart's contents. Perplexity is drawn on a logarithmic scale, with its values as labels.

    training, validation  curves of points (update, height), about POINTS each at most
    phases                (updates before it, name)
    updates               total number, which is the width of the chart
    top                   end of the y axis, which begins at 0
    ticks                 (height, label)
    """

    training: list[Point]
    validation: list[Point]
    phases: list[tuple[int, str]]
    updates: int
    top: float
    ticks: list[tuple[float, str]]


def make_chart(metrics: Metrics, what: str = "loss") -> Chart:
    """The chart of "loss", "perplexity" or "accuracy"; values that are missing or not finite are left out.

    Raises ValueError for another quantity, DataError where no value is left.
    """
    if what not in QUANTITIES:
        raise ValueError(f"a chart shows {', '.join(QUANTITIES)}; got {what!r}; choose one of them")
    scale = _log if what == "perplexity" else float
    phases, updates = [], 0
    for name, group in itertools.groupby(metrics, operator.itemgetter("phase")):
        lines = list(group)
        phases.append((updates, name, lines))  # each phase counts its steps from 1
        updates += lines[-1]["step"]

    def curve(key: str) -> list[Point]:
        pieces = [
            [(before + line["step"], scale(line[key])) for line in lines if _is_finite(line.get(key))]
            for before, _, lines in phases
        ]
        every = max(1, math.ceil(sum(map(len, pieces)) / POINTS))
        return [_mean(piece[at : at + every]) for piece in pieces for at in range(0, len(piece), every)]

    training, validation = curve(what), curve(f"validation_{what}")
    heights = [height for _, height in training + validation]
    if not heights:
        raise DataError(f"metrics must hold a finite {what} to draw; got none; draw another quantity")
    top = max(*heights, 0.001)  # zeros get an axis too
    values = _log_ticks(top) if what == "perplexity" else _ticks(0, top, 6)
    ticks = [(scale(value), f"{value:g}") for value in values]
    return Chart(training, validation, [(at, name) for at, name, _ in phases], updates, top, ticks)


def draw(
    metrics: Metrics,
    what: str = "loss",
    width: int | None = None,
    height: int | None = None,
    color: bool | None = None,
) -> str:
    """A chart for the terminal, as text.

    width, height  in characters; None: what the terminal has, at most WIDEST and HIGHEST
    color          None: if stdout is a terminal, TERM isn't "dumb" and NO_COLOR isn't set

    Raises ValueError and DataError as make_chart does.
    """
    import plotext  # takes half a second

    chart = make_chart(metrics, what)
    terminal = shutil.get_terminal_size()
    if color is None:
        is_off = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        color = sys.stdout is not None and sys.stdout.isatty() and not is_off

    plotext.terminal.limit(False, False)  # draw as large as asked, whatever the terminal
    figure = plotext.figure  # there is only one
    figure.clear()
    figure.theme("simple")
    wide, high = width or min(terminal.columns, WIDEST), height or min(terminal.lines - 1, HIGHEST)
    figure.plot_size(max(wide, SMALLEST), max(high, SMALLEST))  # with less room plotext ends the process
    figure.title(what)
    key = []
    for points, marker, sign in (
        (chart.training, "braille", "⠒⠒ training"),
        (chart.validation, "dot", "•• validation"),
    ):
        if points:
            figure.draw(figure.signal(*zip(*points, strict=True), marker=marker).lines(True))
            key.append(sign)
    figure.label("   ".join(["update", *key]), "x")  # plotext's own legend would cover the curves
    figure.ruler("x").lim(0, chart.updates)
    figure.ruler("x").ticks(_whole_ticks(chart.updates, 6))
    figure.ruler("y").lim(0, chart.top)
    figure.ruler("y").ticks(*map(list, zip(*chart.ticks, strict=True)))
    if len(chart.phases) > 1:
        ends = [*(at for at, _ in chart.phases), chart.updates]
        middles = [(begin + end) / 2 for begin, end in itertools.pairwise(ends)]
        figure.ruler("x", "upper").lim(0, chart.updates).ticks(middles, [name for _, name in chart.phases])
        for at in ends[1:-1]:
            figure.line(at, orientation="vertical")
    text = figure.build().string(colorless=not color)
    figure.clear()
    return "\n".join(line.rstrip() for line in text.splitlines())


def write_svg(metrics: Metrics, path: str | os.PathLike[str], what: str = "loss") -> None:
    """Write a chart as a self-contained SVG file; an old file is replaced as a whole or stays.

    Raises OSError, and ValueError and DataError as make_chart does.
    """
    chart = make_chart(metrics, what)
    curves = [
        (name, color, points)
        for name, color, points in (
            ("training", svg.TRAINING, chart.training),
            ("validation", svg.VALIDATION, chart.validation),
        )
        if points
    ]
    text = svg.render(
        f"{what}: {', then '.join(name for _, name in chart.phases)}",
        curves,
        chart.phases[1:],
        chart.updates,
        chart.top,
        _whole_ticks(chart.updates, 10),
        chart.ticks,
    )
    write_text(path, text)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # so that sums are finite, too


def _mean(points: list[Point]) -> Point:
    """The last point's update, as in a line of metrics, and the mean height."""
    return points[-1][0], sum(height for _, height in points) / len(points)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high > low, about `most` at most."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(digit * power for digit in (1, 2, 5, 10) if (high - low) / (digit * power) <= most)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _whole_ticks(high: int, most: int) -> list[int]:
    return [int(tick) for tick in _ticks(0, high, min(high, most))]


def _log(perplexity: float) -> float:
    """The height of a perplexity, which is 1 or more up to rounding."""
    return math.log10(max(1.0, perplexity))


def _log_ticks(top: float) -> list[float]:
    """Round numbers from 1 to 10**top, about evenly spaced on a logarithmic scale."""
    if top < 1:
        return _ticks(1, 10**top, 5)
    powers = range(0, int(top) + 1, math.ceil(top / 6))
    values = [digit * 10.0**power for power in powers for digit in ((1, 2, 5) if top < 2.5 else (1,))]
    return [value for value in values if _log(value) <= top]
