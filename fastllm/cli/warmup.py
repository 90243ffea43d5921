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
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..config import PRESETS, ModelConfig, preset

if TYPE_CHECKING:
    from ..conversion import Source
    from ..formats.opened import Weights
    from ..model import Model
    from ..optimizers import Optimizer
    from ..training.config import JobConfig

Tasks = dict[str, Callable[[], object]]

VOCABULARY = 16  # of a model that is only there to be compiled, where sizes make no difference


def configure(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", choices=list(PRESETS), help="compile what this model needs")
    model.add_argument("--config", metavar="FILE", help="compile what the job in this TOML file needs")
    model.add_argument("--model", metavar="PATH", help="compile what this model needs, of whatever project it is")


def run(arguments: argparse.Namespace) -> int:
    from ..kernels import Replay

    tasks = _tasks(arguments) | {"calls done again": Replay([])}
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
    from ..checkpoint import load
    from ..kernels.cases import CASES
    from ..model import Model
    from ..optimizers import OPTIMIZERS
    from ..training.config import JobConfig

    if not (arguments.preset or arguments.config or arguments.model):
        return {name: lambda name=name: _call(name, with_float16=True) for name in CASES}  # type: ignore[misc]
    make_optimizer: Callable[[Model], Optimizer]
    if arguments.model:
        opened, _ = load(arguments.model)
        if opened.is_frozen:
            return _tasks_of_file(opened)
        config, make_optimizer = opened.config, OPTIMIZERS["adamw"]
    elif arguments.preset:
        config, make_optimizer = preset(arguments.preset, vocab_size=VOCABULARY), OPTIMIZERS["adamw"]
    else:
        job = JobConfig.read(arguments.config)
        if job.path is not None:
            return {"the model to be tuned": lambda: _tune(job)}
        config, make_optimizer = job.model_config(VOCABULARY), job.optimizer.make
    config = dataclasses.replace(config, layers=1)
    twin, model = Model(config, backend="numpy"), Model(config)
    used = _twins_called(lambda: _train_and_answer(twin, make_optimizer(twin)))
    return _calls(used) | {"the model": lambda: _train_and_answer(model, make_optimizer(model))}


def _tasks_of_file(opened: Model) -> Tasks:
    """What a model needs whose weights stay in a file: its kernels, those of its kinds of numbers, and all together."""
    from ..conversion import source_of
    from ..kernels.kinds import dot_of, unpack_of
    from ..model import Model
    from ..packed import KINDS

    source = source_of(opened, None)
    config, weights = _few_layers(source)
    twin, model = Model(config, backend="numpy", weights=weights), Model(config, weights=weights)
    used = _twins_called(lambda: _answer(twin))
    tasks = _calls(used)
    for name in sorted(source.kinds):
        number = KINDS[name].number
        tasks[f"dot products of {name}"] = lambda number=number: dot_of(number)  # type: ignore[misc]
        tasks[f"unpacking of {name}"] = lambda number=number: unpack_of(number)  # type: ignore[misc]
    return tasks | {"the model": lambda: _answer(model)}


def _calls(names: set[str]) -> Tasks:
    """A call of each of these kernels."""
    from ..kernels.cases import CASES

    return {
        name: lambda name=name: _call(name)  # type: ignore[misc]
        for name in CASES
        if name in names and not name.startswith("packed_")  # whose cases have all kinds
    }


def _few_layers(source: Source) -> tuple[ModelConfig, Weights]:
    """The model with one layer of each sort: layers of a file may be of different kinds of numbers."""
    layers: dict[tuple[str, ...], dict[str, Any]] = {}
    weights: Weights = {}
    for name, weight in source.weights.items():
        if not name.startswith("blocks."):
            weights[name] = weight
    for layer in range(source.config.layers):
        prefix = f"blocks.{layer}."
        own = {name.removeprefix(prefix): w for name, w in source.weights.items() if name.startswith(prefix)}
        layers.setdefault(tuple(str(getattr(weight, "kind", "")) for weight in own.values()), own)
    for i, own in enumerate(layers.values()):
        weights |= {f"blocks.{i}.{name}": weight for name, weight in own.items()}
    return dataclasses.replace(source.config, layers=len(layers)), weights


def _call(name: str, with_float16: bool = False) -> None:
    """Call a kernel at its small test sizes: parallel loops are compiled whether or not they pay there.

    with_float16  also as a cache of that needs it, which few ask for
    """
    import numpy as np

    from .. import kernels
    from ..kernels.cases import CASES, with_scratch

    for size in CASES[name].sizes:
        if size.get("is_half") and not with_float16:
            continue
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


def _tune(job: JobConfig) -> None:
    """What a tuning job needs: its model as it is, but trained on next to nothing."""
    from ..training.job import build

    _, model = build(job, {})
    _train_and_answer(model, job.optimizer.make(model))


def _train_and_answer(model: Model, optimizer: Optimizer) -> None:
    """A step, a validation, a prompt and a token. Some tokens have no target, as in a dialogue's question."""
    import numpy as np

    from ..optimizers import clip_gradients

    tokens = np.arange(min(3, model.config.context))
    targets = np.where(tokens < len(tokens) - 1, -1, tokens)
    for accumulate in (False, True):
        model.score_and_gradients(
            tokens, targets, dropout_seed=0 if model.config.dropout else None, accumulate=accumulate
        )
    clip_gradients(model, 1e-6)
    optimizer.step(1e-6)
    _answer(model)


def _answer(model: Model) -> None:
    """A validation, a prompt and a token."""
    import numpy as np

    length = min(3, model.config.context)
    tokens = np.arange(length) % model.config.vocab_size
    model.score(tokens, np.where(tokens < length - 1, -1, tokens))
    cache = model.new_cache()
    model.prefill(tokens[: max(1, length - 1)], None, cache)
    if length > 1:
        model.decode(tokens[:1], cache)


def _kept() -> int:
    """Number of compiled functions on disk."""
    from ..kernels import cache_directory

    folder = cache_directory()
    return sum(1 for _ in folder.rglob("*.nbc")) if folder else 0


def _outcome(compiled: int, count: int) -> str:
    from ..kernels import cache_directory, keeps_kernels

    if not compiled and cache_directory() is not None:
        return f"all {count} came from the cache in {cache_directory()}"
    if not keeps_kernels():
        return "nothing was kept, as no cache folder is writable; see `fastllm doctor`"
    return f"{compiled} of {count} were compiled and are now kept in {cache_directory()}"
