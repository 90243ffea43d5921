"""A job as a person sees it: the model, compilation, progress, curves. Shared by `demo` and `train`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from ..compilation import Uses, compile_kernels
from ..config import in_words
from .curves import draw, read_metrics, write_svg
from .job import Interrupted, Job
from .progress import Progress
from .run import PLOT

TOKENS = {"word": "words", "character": "characters", "byte": "bytes"}  # of a tokenizer by its name; others are BPE


def describe(job: Job) -> str:
    """A line on the model."""
    model, config = job.model, job.model.config
    is_made = job.config.path is None and job.config.tokenizer.path is None
    kind = f" ({TOKENS.get(job.tokenizer.name, 'pairs of bytes')})" if is_made else ""
    vocabulary = f"vocabulary {config.vocab_size}{kind}"
    line = f"model: {in_words(config)}; {vocabulary}; {model.parameter_count:,} parameters"
    if model.adapter is None:
        return line
    return f"{line}, which stay; {model.adapter.flat.size:,} in low-rank maps are trained"


def prepare(job: Job) -> None:
    """Say what the model is, and compile what it needs."""
    print("\n".join([describe(job), *job.notes]), flush=True)
    compile_kernels(job.model, Uses(job.config.optimizer.make(job.model), measures=True, generates=True))


def train_and_plot(job: Job) -> int:
    """Train what is left, draw the loss and say where everything is. Exit status: 0, or 128 and the number of the
    signal that interrupted it, as shells have it."""
    try:
        job.train(Progress())
    except Interrupted as stop:
        with suppress(OSError):  # the terminal may have been closed
            print(f"fastllm: {stop}", file=sys.stderr, flush=True)
        return 128 + stop.signal
    return finish(job)


def finish(job: Job) -> int:
    """Of a run that is complete: draw the loss and say where everything is. Exit status: 0."""
    plot(job.run.metrics, job.run.folder / PLOT)
    print(f"run folder: {job.run.folder} (config.toml, metrics.jsonl, checkpoint/, {PLOT})", flush=True)
    return 0


def plot(metrics: Path, svg: Path) -> None:
    """The loss curve, to a file and to the terminal: in this order, as whoever read our output may have gone."""
    records = read_metrics(metrics)
    write_svg(records, svg)
    print(draw(records))
