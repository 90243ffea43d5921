"""Compile the kernels now, so that later commands start at once.

Without an option, it compiles all kernels; with one, those that a model needs for training and generating. For a model
in another project's file, these are the kernels for generating and `fastllm eval` with the number types in that file.
Compiled kernels are kept on disk, in the folder that `fastllm doctor` shows, and only loaded from then on.

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
from functools import partial
from typing import TYPE_CHECKING

from ..config import PRESETS, preset
from ..machine import check_compiler

if TYPE_CHECKING:
    from ..compilation import Uses
    from ..config import ModelConfig
    from ..model import Model

Work = dict[str, Callable[[], object]]

VOCABULARY = 16  # of a model that is only compiled: its size makes no difference


def configure(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", choices=list(PRESETS), help="compile what this model needs")
    model.add_argument("--config", metavar="FILE", help="compile what the job in this TOML file needs")
    model.add_argument("--model", metavar="PATH", help="compile what this model needs: any that fastllm opens")


def run(arguments: argparse.Namespace) -> int:
    from ..compilation import Helpers, Task, call_small, calls_of, exercise, task_of
    from ..kernels import Replay

    check_compiler()
    task: Task = {}
    last: Work = {}
    if arguments.preset or arguments.config or arguments.model:
        model, uses = _model(arguments)
        task = task_of(model, uses)
        if uses.optimizer is not None:
            last["scale"] = partial(call_small, "scale")  # for clip_gradients; a Trainer doesn't use it
        last["the model"] = partial(exercise, model, uses)
    first: Work = {"replayed calls": Replay([])}
    kernels: Work = {name: partial(_call_all, calls) for name, calls in calls_of(task).items()}
    with Helpers(lambda: task):
        return _do(first | kernels | last)


def _call_all(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _do(work: Work) -> int:
    """Do the work, and print how long each part takes."""
    from ..kernels import watch_compilation

    names: list[str] = []
    began, compiled = time.perf_counter(), 0
    with watch_compilation(names.append):
        for number, (name, compile_it) in enumerate(work.items(), 1):
            print(f"{number:>3}/{len(work)}  {name:<32}", end="", flush=True)
            known, start = len(names), time.perf_counter()
            compile_it()
            is_new = len(names) > known
            compiled += is_new
            said = "compiled" if is_new else "from the cache"
            print(f"{time.perf_counter() - start:7.2f} s  {said}", flush=True)
    print(f"{time.perf_counter() - began:.1f} s; {_outcome(compiled, len(work))}")
    return 0


def _model(arguments: argparse.Namespace) -> tuple[Model, Uses]:
    """The model, or one that needs the same kernels, and what it may be used for."""
    from ..checkpoint import load
    from ..compilation import Uses
    from ..optimizers import AdamW
    from ..training.config import JobConfig

    if arguments.config:
        from ..training.job import build

        job = JobConfig.read(arguments.config)
        model = build(job, {})[1] if job.path is not None else _small(job.model_config(VOCABULARY))
        return model, Uses(job.optimizer.make(model), measures=True, generates=True)
    if arguments.model:
        model, _ = load(arguments.model)
        if model.is_frozen:
            return model, Uses(measures=True, generates=True)
        model = _small(model.config)
    else:
        model = _small(preset(arguments.preset, vocab_size=VOCABULARY))
    return model, Uses(AdamW(model), measures=True, generates=True)


def _small(config: ModelConfig) -> Model:
    from ..model import Model

    return Model(dataclasses.replace(config, layers=1))


def _outcome(compiled: int, count: int) -> str:
    from ..kernels import cache_directory, keeps_kernels

    if not compiled and cache_directory() is not None:
        return f"all {count} came from the cache in {cache_directory()}"
    if not keeps_kernels():
        return "compiled kernels can't be kept on disk; see `fastllm doctor`"
    return f"compiled {compiled} of {count}, which are now kept in {cache_directory()}"
