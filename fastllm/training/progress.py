"""Progress on a terminal: a bar for each phase, a line now and then where there is no terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from tqdm import tqdm

from .config import PhaseConfig
from .trainer import Step

if TYPE_CHECKING:
    from ..model import Model
    from ..optimizers import Optimizer

LINES = 10  # a phase without a terminal


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks on; a program without a console, such as pythonw, has no streams at all."""
    return stream is not None and stream.isatty()


class Progress:
    """Shows loss, accuracy, tokens/s and the time left. Passed to Job.train."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_terminal = is_terminal(self._stream)
        self._bar: tqdm | None = None

    def begin(self, phase: PhaseConfig, done: int, steps: int) -> None:
        self._phase, self._steps, self._next_line = phase, steps, 0
        self._validation: dict[str, Any] = {}  # the last that there was
        self._began, self._first = time.monotonic(), done
        if self._is_terminal:
            # No bar, which would leave no room for the figures. A terminal that doesn't know its size has 80 columns.
            shape: dict[str, Any] = {"dynamic_ncols": True} if _width() else {"ncols": 80, "nrows": 24}
            layout = "{desc} {n_fmt}/{total_fmt}, {remaining} left{postfix}{bar:0}"  # some cut no line without a bar
            self._bar = tqdm(
                total=steps, initial=done, desc=phase.name, file=self._stream, bar_format=layout, **shape
            )

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
            left = spent / max(1, record["step"] - self._first) * (self._steps - record["step"])
            print(
                f"{self._phase.name}: step {record['step']}/{self._steps}, {_figures(record)}, {left:.0f} s left",
                file=self._stream,
                flush=True,
            )

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


def compile_kernels(model: Model, optimizer: Optimizer | None = None) -> None:
    """Compile what generating with this model needs, and training with an optimizer if one is given.

    Shows a progress line. Runs a tiny batch, an update of nothing, a short prompt and a decoding step: parameters stay
    as they are, gradients are zero after it. Kernels kept on disk are read, not compiled, and nothing is shown.
    """
    began = time.monotonic()
    if model.backend != "numba":
        return
    from ..kernels import keeps_kernels, watch_compilation

    stream = sys.stderr
    names: list[str] = []

    def report(name: str) -> None:
        if name not in names:
            names.append(name)
            if is_terminal(stream):
                print(f"\r\033[Kcompiling kernels: {len(names)}, {name} ...", end="", file=stream, flush=True)
            elif len(names) == 1:
                print("compiling kernels (once for this machine) ...", file=stream, flush=True)

    with watch_compilation(report):
        tokens = np.zeros(4, np.int32)
        starts = np.array([0, 2, 4] if model.config.context > 1 else [0, 1, 2, 3, 4], np.int32)
        targets = np.array([0, -1, 0, 0], np.int32)
        if optimizer is not None:
            dropout = 0 if model.config.dropout else None
            model.score(tokens, targets, starts)
            model.score_and_gradients(tokens, targets, starts, dropout_seed=dropout)
            model.zero_gradients()
            optimizer.compile()
        length = min(2, model.config.context - 1)
        if length:
            cache = model.new_cache()
            model.prefill(tokens[:length], None, cache)
            model.decode(tokens[:1], cache)
    if names:
        seconds = time.monotonic() - began
        clear = "\r\033[K" if is_terminal(stream) else ""
        kept = "they are kept on disk" if keeps_kernels() else "they can't be kept on disk"
        print(f"{clear}compiled {len(names)} kernels in {seconds:.0f} s; {kept}", file=stream, flush=True)
