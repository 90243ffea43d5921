"""Compile what a model needs before it is waited for, on several cores.

Numba compiles one function after another. So beside the process that shall use them, others, helpers, compile the same
kernels from the other end of the list; what they are done with, it finds on the disk. Only where two meet, and what
several kernels have in common, may be compiled twice.

A helper knows what the kernels are called with from a model of the same architecture, only smaller, whose arithmetic
is done by the twins while it writes down the calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Self, TextIO

import numpy as np

from .config import ModelConfig
from .layers.recording import listening
from .machine import usable_cores
from .model import Model
from .optimizers import OPTIMIZERS, Optimizer
from .packed import KINDS, Packed
from .parameters import FileParameters, shapes_of

MOST_HELPERS = 3  # each takes 250 MB, and there are not many kernels
HELPER = """
import json, sys
sys.path[:] = json.loads(sys.stdin.readline())
from fastllm.compilation import help_to_compile
help_to_compile()
"""
ISOLATED = ("-I", "-c", HELPER)  # nothing is imported from the folder that the user is in, unless this process would
# Of the small model: K-quants have blocks of so many weights, and so many are eight heads of 32.
BLOCK = 256
# Their compilation begins with that of the matrix product, which is what the process itself begins with.
LAST = frozenset(
    {
        "attention_backward", "attention_forward", "attention_prefill", "linear_backward", "linear_forward", "matmul",
        "packed_backward", "packed_forward",
    }
)  # fmt: skip


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks on; a program without a console, such as pythonw, has no streams at all."""
    return stream is not None and stream.isatty()


# What is to be compiled, as JSON has it: what a model shall do, from task_of; or, where it is empty, all there is.
Task = dict[str, Any]


class Uses(NamedTuple):
    """What a model shall do: be trained with an optimizer and measured, be measured, generate."""

    optimizer: Optimizer | None = None
    measures: bool = False
    generates: bool = False


def compile_kernels(model: Model, uses: Uses) -> None:
    """Compile what a model needs.

    Shows a progress line. Runs a tiny batch, an update of nothing, a short prompt and a decoding step: parameters stay
    as they are, gradients are zero after it. Kernels kept on disk are read, not compiled, and nothing is shown.
    """
    began = time.monotonic()
    if model.backend != "numba":
        return
    from .kernels import Replay, keeps_kernels, watch_compilation

    stream = sys.stderr
    names: list[str] = []

    def report(name: str) -> None:
        if name not in names:
            names.append(name)
            if is_terminal(stream):
                print(f"\r\033[Kcompiling kernels: {len(names)}, {name} ...", end="", file=stream, flush=True)
            elif len(names) == 1:
                once = " (once for this machine)" if keeps_kernels() else ""
                print(f"compiling kernels{once} ...", file=stream, flush=True)

    with Helpers(partial(task_of, model, uses)), watch_compilation(report):
        exercise(model, uses)
        Replay([])()  # what does passes again
    if names:
        seconds = time.monotonic() - began
        clear = "\r\033[K" if is_terminal(stream) else ""
        kept = "they are kept on disk" if keeps_kernels() else "they can't be kept on disk"
        print(f"{clear}compiled the kernels in {seconds:.0f} s; {kept}", file=stream, flush=True)


def exercise(model: Model, uses: Uses) -> None:
    """Do a little of all that a model shall do."""
    tokens = np.zeros(4, np.int32)
    starts = np.array([0, 2, 4] if model.config.context > 1 else [0, 1, 2, 3, 4], np.int32)
    targets = np.array([0, -1, 0, 0], np.int32)
    if uses.measures or uses.optimizer is not None:
        model.score(tokens, targets, starts)
    if uses.optimizer is not None:
        model.score_and_gradients(tokens, targets, starts, dropout_seed=0 if model.config.dropout else None)
        model.zero_gradients()
        uses.optimizer.compile()
    length = min(2, model.config.context - 1)
    if uses.generates and length:
        cache = model.new_cache()
        model.prefill(tokens[:length], None, cache)
        model.decode(tokens[:1], cache)


class Helpers:
    """Processes that compile what this one will need, from when it first compiles something until the block ends.

    make_task  what they shall compile
    """

    def __init__(self, make_task: Callable[[], Task]) -> None:
        from .kernels import watch_compilation

        self._make_task = make_task
        self._watch = watch_compilation(self._note)
        self._has_begun = False
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._watch.__enter__()
        return self

    def _note(self, name: str) -> None:
        if not self._has_begun:
            self._has_begun = True
            self.start()

    def start(self) -> None:
        """As many as there are other cores; none where what they make is not kept, or nothing can be started."""
        from .kernels import keeps_kernels

        count = min(MOST_HELPERS, usable_cores() - 1)
        if count < 1 or not keeps_kernels() or not sys.executable or getattr(sys, "frozen", False):
            return
        task = self._make_task()
        with suppress(OSError):
            for number in range(count):
                self._start(task | {"share": [number, count]})

    def _start(self, task: Task) -> None:
        from .kernels import cache_directory

        folder = cache_directory()
        assert folder is not None  # as kernels are kept
        process = subprocess.Popen(
            [sys.executable, *ISOLATED],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"NUMBA_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(folder.parents[1])},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self.processes.append(process)
        assert process.stdin is not None
        process.stdin.write(lines_for_helper(task))
        process.stdin.flush()  # and stays open: see help_to_compile

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)
        for process in self.processes:
            process.kill()  # kernels are put on the disk as a whole
            with suppress(OSError):
                process.communicate()


def task_of(model: Model, uses: Uses) -> Task:
    """What of a model decides about its kernels."""
    optimizers = [name for name, kind in OPTIMIZERS.items() if type(uses.optimizer) is kind]
    packed: dict[str, Packed] = {}
    if isinstance(model.parameters, FileParameters):
        packed = {name: model.parameters.packed(name) for name in model.parameters}
    first = [name for name in packed if name.startswith("blocks.0.") or not name.startswith("blocks.")]
    additions = model.adapter.additions if model.adapter is not None else {}
    return {
        "config": model.config.to_dict(),
        "weights": {name: (packed[name].kind.name, packed[name].data.flags.writeable) for name in first},
        "kinds": sorted({array.kind.name for array in packed.values()}),
        "targets": sorted({name.rpartition(".")[2] for name in additions}),
        "optimizer": optimizers[0] if optimizers else None,
        "measures": uses.measures,
        "generates": uses.generates,
        "cache_dtype": model.cache_dtype.name,
    }


def lines_for_helper(task: Task) -> bytes:
    """Where it finds this library, and what there is to do: its "share" is its number among how many."""
    path = [folder for folder in sys.path if isinstance(folder, str)]
    return f"{json.dumps(path)}\n{json.dumps(task)}\n".encode()


def help_to_compile() -> None:
    """What a helper does, as the second line of its standard input says.

    It ends when that is closed: with the process that it helps at the latest, however that ends.
    """
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    share = task.pop("share")
    for call in _from_share(_work(task), *share):
        call()


def _from_share(work: list[Any], number: int, count: int) -> list[Any]:
    """All work, from where one of so many helpers begins."""
    first = number * len(work) // count
    return work[first:] + work[:first]


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def _work(task: Task) -> list[Callable[[], object]]:
    """What compiles all that a task needs, from its end on; but what begins with the matrix product comes last."""
    backwards = list(calls_of(task).items())[::-1]
    backwards.sort(key=lambda item: item[0] in LAST)
    return [call for _, calls in backwards for call in calls]


def calls_of(task: Task) -> dict[str, list[Callable[[], object]]]:
    """What compiles each kernel that a task needs, by its name, in the order in which they are first called."""
    if not task:
        from .kernels.cases import CASES

        return {name: [partial(call_small, name)] for name in CASES}
    from .kernels.block_rows import dot_of, unpack_of

    calls = _noted(*_small_model(task))
    for name in task["kinds"]:
        calls[f"dot products of {name}"] = [partial(dot_of, KINDS[name].number)]
        calls[f"unpacking of {name}"] = [partial(unpack_of, KINDS[name].number)]
    return calls


def call_small(name: str) -> None:
    """Call a kernel at its small test sizes: parallel loops are compiled whether or not they pay there."""
    from . import kernels
    from .kernels.cases import CASES, with_scratch

    for size in CASES[name].sizes:
        arguments = with_scratch(CASES[name].build(np.random.default_rng(0), **size), kernels)
        getattr(kernels, name)(*arguments.values())


def _small_model(task: Task) -> tuple[Model, Uses]:
    """One that needs the same kernels, called with the same types, and what it shall do."""
    fields, weights = task["config"], task["weights"]
    group = fields["heads"] // fields["kv_heads"]  # heads that share keys: what attends to a cache is compiled for each
    sizes = {"width": BLOCK * group, "hidden": BLOCK, "heads": 8 * group, "kv_heads": 8, "head_size": BLOCK // 8}
    others = {"layers": 1, "vocab_size": 16, "context": min(fields["context"], 16), "rope_scaling": None}
    config = ModelConfig.from_dict(fields | sizes | others)
    shapes = shapes_of(config) if weights else {}
    model = Model(config, weights={name: _zeros(shape, *weights[name]) for name, shape in shapes.items()} or None)
    model.cache_dtype = task["cache_dtype"]
    if task["targets"]:
        model.add_lora(targets=task["targets"])
    optimizer = OPTIMIZERS[task["optimizer"]](model) if task["optimizer"] else None
    return model, Uses(optimizer, task["measures"], task["generates"])


def _zeros(shape: tuple[int, ...], name: str, is_writeable: bool) -> np.ndarray | Packed:
    """A parameter as a file holds it."""
    kind = KINDS[name]
    is_packed = name != "F32"
    array = np.zeros((shape[0], kind.row_bytes(shape[1])), np.uint8) if is_packed else np.zeros(shape, np.float32)
    array.flags.writeable = is_writeable
    return Packed(array, kind) if is_packed else array


def _types(value: object) -> Any:
    """What of an argument decides for what a kernel is compiled."""
    if isinstance(value, tuple):
        return tuple(map(_types, value))
    if isinstance(value, np.ndarray):
        return value.dtype, value.ndim, value.flags.writeable, value.flags.c_contiguous
    return type(value)


def _noted(model: Model, uses: Uses) -> dict[str, list[Callable[[], object]]]:
    """The calls of kernels, each with types of its own, in the order in which the first of each kernel is made."""
    from .kernels import reference

    noted: dict[str, dict[Hashable, Callable[[], object]]] = {}
    with listening(model._backend, reference) as calls, np.errstate(all="ignore"):
        exercise(model, uses)
    for kernel, arguments in calls:
        noted.setdefault(kernel.__name__, {}).setdefault(_types(arguments), partial(kernel, *arguments))
    return {name: list(of_types.values()) for name, of_types in noted.items()}
