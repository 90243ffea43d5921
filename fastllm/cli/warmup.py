"""Compile the kernels now, so that later commands start at once.

Without an option, all kernels; with one, what a model needs to train and to answer, or of one whose weights stay in
another project's file, in its kinds of numbers, to answer and to be measured. What is compiled is kept on disk, in the
folder that `fastllm doctor` shows, so the second time it is only loaded.

examples:
  fastllm warmup
  fastllm warmup --preset nano
  fastllm warmup --config job.toml
  fastllm warmup --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import PRESETS, preset

if TYPE_CHECKING:
    from ..compilation import Uses
    from ..config import ModelConfig
    from ..model import Model

Tasks = dict[str, Callable[[], object]]

VOCABULARY = 16  # of a model that is only there to be compiled, where sizes make no difference


def configure(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", choices=list(PRESETS), help="compile what this model needs")
    model.add_argument("--config", metavar="FILE", help="compile what the job in this TOML file needs")
    model.add_argument("--model", metavar="PATH", help="compile what this model needs, of whatever project it is")


def run(arguments: argparse.Namespace) -> int:
    if not (arguments.preset or arguments.config or arguments.model):
        return _run(_all_kernels(), lambda: None)
    from ..compilation import Helpers, exercise, kernel_calls

    model, uses = _model(arguments)
    tasks: Tasks = {
        name: lambda calls=calls: [call() for call in calls]  # type: ignore[misc]
        for name, calls in kernel_calls(model, uses).items()
    }
    if uses.optimizer is not None:
        tasks["scale"] = lambda: _call("scale")  # of clip_gradients; a Trainer clips otherwise
    with Helpers(model, uses) as helpers:
        return _run(tasks | {"the model": lambda: exercise(model, uses)}, helpers.start)


def _run(tasks: Tasks, compiles: Callable[[], object]) -> int:
    """Do all of them.

    compiles  called when it first turns out that something isn't on disk
    """
    from ..kernels import Replay, watch_compilation

    tasks = {"calls done again": Replay([])} | tasks
    names: list[str] = []

    def report(name: str) -> None:
        if not names:
            compiles()
        names.append(name)

    began, compiled = time.perf_counter(), 0
    with watch_compilation(report):
        for number, (name, task) in enumerate(tasks.items(), 1):
            print(f"{number:>3}/{len(tasks)}  {name:<32}", end="", flush=True)
            known, start = len(names), time.perf_counter()
            task()
            is_new = len(names) > known
            compiled += is_new
            said = "compiled" if is_new else "from the cache"
            print(f"{time.perf_counter() - start:7.2f} s  {said}", flush=True)
    print(f"{time.perf_counter() - began:.1f} s; {_outcome(compiled, len(tasks))}")
    return 0


def _all_kernels() -> Tasks:
    from ..kernels.cases import CASES

    return {name: lambda name=name: _call(name) for name in CASES}  # type: ignore[misc]


def _call(name: str) -> None:
    """Call a kernel at its small test sizes: parallel loops are compiled whether or not they pay there."""
    import numpy as np

    from .. import kernels
    from ..kernels.cases import CASES, with_scratch

    for size in CASES[name].sizes:
        arguments = with_scratch(CASES[name].build(np.random.default_rng(0), **size), kernels)
        getattr(kernels, name)(*arguments.values())


def _model(arguments: argparse.Namespace) -> tuple[Model, Uses]:
    """The model, or one of the same kind, and what it may be wanted for."""
    from ..checkpoint import load
    from ..compilation import Uses
    from ..optimizers import AdamW
    from ..training.config import JobConfig

    if arguments.config:
        from ..training.job import build

        job = JobConfig.read(arguments.config)
        model = build(job, {})[1] if job.path is not None else _small(job.model_config(VOCABULARY))
        return model, Uses(job.optimizer.make(model), generates=True)
    if arguments.model:
        model, _ = load(arguments.model)
        if model.is_frozen:
            return model, Uses(measures=True, generates=True)
    else:
        model = _small(preset(arguments.preset, vocab_size=VOCABULARY))
    return model, Uses(AdamW(model), generates=True)


def _small(config: ModelConfig) -> Model:
    from ..model import Model

    return Model(dataclasses.replace(config, layers=1))


def _outcome(compiled: int, count: int) -> str:
    from ..kernels import cache_directory, keeps_kernels

    if not compiled and cache_directory() is not None:
        return f"all {count} came from the cache in {cache_directory()}"
    if not keeps_kernels():
        return "nothing was kept, as no cache folder is writable; see `fastllm doctor`"
    return f"what was missing of {count} was compiled and is now kept in {cache_directory()}"
