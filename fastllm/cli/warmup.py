"""Compile the kernels now, so that later commands start at once.

Without an option, all kernels; with one, what a model needs to train and to answer. What is compiled is kept
on disk, in the folder that `fastllm doctor` shows, so the second time it is only loaded.

examples:
  fastllm warmup
  fastllm warmup --preset nano
  fastllm warmup --config job.toml
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from ..config import PRESETS, preset

if TYPE_CHECKING:
    from ..model import Model
    from ..optimizers import Optimizer

Tasks = dict[str, Callable[[], object]]

VOCABULARY = 16  # of a model that is only there to be compiled, where sizes make no difference


def configure(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", choices=list(PRESETS), help="compile what this model needs")
    model.add_argument("--config", metavar="FILE", help="compile what the job in this TOML file needs")


def run(arguments: argparse.Namespace) -> int:
    tasks = _tasks(arguments)
    began, compiled = time.perf_counter(), 0
    for number, (name, task) in enumerate(tasks.items(), 1):
        print(f"{number:>3}/{len(tasks)}  {name:<32}", end="", flush=True)
        kept, start = _kept(), time.perf_counter()
        task()
        is_new = _kept() > kept
        compiled += is_new
        print(
            f"{time.perf_counter() - start:7.2f} s  {'compiled' if is_new else 'from the cache'}", flush=True
        )
    print(f"{time.perf_counter() - began:.1f} s; {_outcome(compiled, len(tasks))}")
    return 0


def _tasks(arguments: argparse.Namespace) -> Tasks:
    """What to run, by name; each does a little of everything that shall be compiled."""
    from ..kernels.cases import CASES
    from ..model import Model
    from ..optimizers import OPTIMIZERS
    from ..training.config import JobConfig

    if not (arguments.preset or arguments.config):
        return {name: lambda name=name: _call(name) for name in CASES}  # type: ignore[misc]
    make_optimizer: Callable[[Model], Optimizer]
    if arguments.preset:
        config, make_optimizer = preset(arguments.preset, vocab_size=VOCABULARY), OPTIMIZERS["adamw"]
    else:
        job = JobConfig.read(arguments.config)
        config, make_optimizer = job.model_config(VOCABULARY), job.optimizer.make
    config = dataclasses.replace(config, layers=1)
    twin, model = Model(config, backend="numpy"), Model(config)
    used = _twins_called(lambda: _train_and_answer(twin, make_optimizer(twin)))
    tasks: Tasks = {name: lambda name=name: _call(name) for name in CASES if name in used}  # type: ignore[misc]
    return tasks | {"the model": lambda: _train_and_answer(model, make_optimizer(model))}


def _call(name: str) -> None:
    """Call a kernel at its small test sizes: parallel loops are compiled whether or not they pay there."""
    import numpy as np

    from .. import kernels
    from ..kernels.cases import CASES, with_scratch

    for size in CASES[name].sizes:
        arguments = with_scratch(CASES[name].build(np.random.default_rng(0), **size), kernels)
        getattr(kernels, name)(*arguments.values())


def _twins_called(work: Callable[[], object]) -> set[str]:
    """Names of the functions of the twins that some work calls: the kernels that it would need."""
    called = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("fastllm.kernels.reference."):
            called.add(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return called


def _train_and_answer(model: Model, optimizer: Optimizer) -> None:
    """A step, a validation, a prompt and a token. Some tokens have no target, as in a dialogue's question."""
    import numpy as np

    from ..optimizers import clip_gradients

    tokens = np.arange(min(3, model.config.context))
    targets = np.where(tokens < len(tokens) - 1, -1, tokens)
    model.score_and_gradients(tokens, targets, dropout_seed=0 if model.config.dropout else None)
    clip_gradients(model, 1e-6)
    optimizer.step(1e-6)
    model.score(tokens, targets)
    cache = model.new_cache()
    model.prefill(tokens, None, cache)
    model.decode(tokens[:1], cache)


def _kept() -> int:
    """Number of compiled functions on disk."""
    from ..kernels import cache_directory

    folder = cache_directory()
    return sum(1 for _ in folder.rglob("*.nbc")) if folder else 0


def _outcome(compiled: int, count: int) -> str:
    from ..kernels import cache_directory

    if cache_directory() is None:
        return "nothing was kept, as no cache folder is writable; see `fastllm doctor`"
    if not compiled:
        return f"all {count} came from the cache in {cache_directory()}"
    return f"{compiled} of {count} were compiled and are now kept in {cache_directory()}"
