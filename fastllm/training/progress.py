"""Progress: on a terminal a line for each phase that is updated in place, elsewhere a new line now and then."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from ..compilation import is_terminal
from .config import PhaseConfig
from .trainer import Step

LINES = 10  # in a phase, without a terminal


class _Bar(tqdm):
    """A bar without tqdm's thread, beside which passes would be done as beside a busy one."""

    monitor_interval = 0


class Progress:
    """Shows loss, accuracy, tokens/s and the time left. Passed to Job.train."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_terminal = is_terminal(self._stream)
        self._bar: _Bar | None = None

    def begin(self, phase: PhaseConfig, done: int, steps: int) -> None:
        self._phase, self._steps, self._next_line = phase, steps, 0
        self._validation: dict[str, Any] = {}  # the last that there was
        self._began, self._first = time.monotonic(), done
        if self._is_terminal:
            # No bar, which would leave no room for the figures. A terminal that doesn't know its size has 80 columns.
            shape: dict[str, Any] = {"dynamic_ncols": True} if _width() else {"ncols": 80, "nrows": 24}
            layout = "{desc} {n_fmt}/{total_fmt}, {remaining} left{postfix}{bar:0}"  # some cut no line without a bar
            self._bar = _Bar(total=steps, initial=done, desc=phase.name, file=self._stream, bar_format=layout, **shape)

    def step(self, done: Step) -> None:
        if self._bar is not None:
            self._bar.update(done.step - self._bar.n)

    def log(self, record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            self._validation = {"validation_loss": record["validation_loss"]}
        record = self._validation | record
        if self._bar is not None:
            self._bar.set_postfix_str(_figures(record), refresh=False)
        elif record["step"] >= self._next_line or record["step"] == self._steps:
            self._next_line = record["step"] + self._steps / LINES
            spent = time.monotonic() - self._began
            left = spent / max(1, record["step"] - self._first) * max(0, self._steps - record["step"])
            line = f"{self._phase.name}: step {record['step']}/{self._steps}, {_figures(record)}, {left:.0f} s left"
            with suppress(OSError):  # who read it may have gone; tqdm, too, goes on where a terminal is closed
                print(line, file=self._stream, flush=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _width() -> int:
    """Columns of the terminal, 0 where it doesn't know."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def _figures(record: dict[str, Any]) -> str:
    text = f"loss {record['loss']:.3f}"
    if "validation_loss" in record:
        text += f", validation {record['validation_loss']:.3f}"
    return f"{text}, accuracy {record['accuracy']:.0%}, {record['tokens_per_second']:,.0f} tokens/s"
