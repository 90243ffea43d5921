"""Compile the kernels that a model needs ahead of time, on several cores.

Numba compiles one function after another. So helper processes compile the same kernels as the process that will use
them, but from other places in the list, and the process finds what they have finished on disk. Where two of them meet,
a kernel may be compiled twice, as may functions that several kernels share.

To learn the argument types of each kernel, a helper runs a smaller model of the same architecture on the twins, and
records the calls.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

import numpy as np

from .config import ModelConfig
from .layers.backend import BACKENDS
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
ISOLATED = ("-I", "-c", HELPER)  # imports nothing from the user's current folder, unless this process would, too
# Width of the small model's matrices: the block size of K-quants, which is also eight heads of 32.
BLOCK = 256
# Compiling these begins with the matrix product, which the main process compiles first itself.
PRODUCTS = frozenset(
    {
        "attention_backward", "attention_forward", "attention_prefill", "linear_backward", "linear_forward", "matmul",
        "packed_backward", "packed_forward",
    }
)  # fmt: skip
# Only a batch in which some tokens have no target needs these.
SELECTIONS = frozenset({"gather_rows", "scatter_rows"})


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; a program without a console, such as pythonw, has no streams at all."""
    return stream is not None and stream.isatty()


# What to compile, ready for JSON: what a model needs, from task_of; or, if it is empty, all kernels.
Task = dict[str, Any]


class Uses(NamedTuple):
    """What a model will be used for: training with an optimizer, measuring loss and accuracy, generating."""

    optimizer: Optimizer | None = None
    measures: bool = False
    generates: bool = False


def compile_kernels(model: Model, uses: Uses) -> None:
    """Compile the kernels that a model needs, showing a progress line.

    Runs a tiny batch, an update of no parameters, a short prompt and a decoding step, whichever are needed: parameters
    stay as they are, gradients are zero afterwards. Kernels found on disk are only read; nothing is shown for them.
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

    with helping(model, uses), watch_compilation(report):
        exercise(model, uses)
        Replay([])()  # compiles what replays recorded passes
    if names:
        seconds = time.monotonic() - began
        clear = "\r\033[K" if is_terminal(stream) else ""
        kept = "they are kept on disk" if keeps_kernels() else "they can't be kept on disk"
        print(f"{clear}compiled the kernels in {seconds:.0f} s; {kept}", file=stream, flush=True)


def exercise(model: Model, uses: Uses) -> None:
    """Run a little of everything that the model will be used for."""
    tokens = np.zeros(4, np.int32)
    starts = np.array([0, 2, 4] if model.config.context > 1 else [0, 1, 2, 3, 4], np.int32)
    targets = np.array([0, -1, 0, 0], np.int32)
    if uses.measures:
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


def helping(model: Model, uses: Uses) -> AbstractContextManager[object]:
    """A block in which, from the first kernel that this process compiles on, helpers compile what the model needs."""
    return Helpers(partial(task_of, model, uses)) if model.backend == "numba" else nullcontext()


class Helpers:
    """Processes that help compile, from when this process first compiles something until the block ends.

    make_task  gives what they are to compile
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
        """Start one per other core, up to MOST_HELPERS; none if kernels can't be kept, or Python can't be started.

        Who limits Numba's threads gets no more processes than that, this one counted.
        """
        from .kernels import keeps_kernels
        from .kernels.jit import thread_limit

        count = min(MOST_HELPERS, usable_cores() - 1, thread_limit() - 1)
        if count < 1 or not keeps_kernels() or not _is_python(sys.executable):
            return
        task = self._make_task()
        with suppress(OSError):
            for number in range(count):
                self._start(task | {"share": [number, count]})

    def _start(self, task: Task) -> None:
        from .kernels import cache_directory

        folder = cache_directory()
        assert folder is not None  # start() has checked that kernels are kept
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
            process.kill()  # safe, as each kernel is written to disk whole or not at all
            with suppress(OSError):
                process.communicate()


def _is_python(program: str | None) -> bool:
    """Whether this is Python itself, rather than a program into which Python is built, or a frozen one."""
    return Path(program or "").name.lower().startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def task_of(model: Model, uses: Uses) -> Task:
    """The properties of a model that determine which kernels it needs."""
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
    """A helper's input: where it finds this library, and the task; its "share" is [its number, how many there are]."""
    path = [folder for folder in sys.path if isinstance(folder, str)]
    return f"{json.dumps(path)}\n{json.dumps(task)}\n".encode()


def help_to_compile() -> None:
    """A helper's main function: do the task in the second line of standard input.

    It ends when standard input is closed, and so no later than the process that it helps, however that ends.
    """
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    share = task.pop("share")
    for call in _from_share(_work(task), *share):
        call()


def _from_share(work: list[Any], number: int, count: int) -> list[Any]:
    """All work, rotated to begin at the share of helper `number` of `count`."""
    first = number * len(work) // count
    return work[first:] + work[:first]


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def _work(task: Task) -> list[Callable[[], object]]:
    """The calls that compile all that a task needs, last kernel first; PRODUCTS, then SELECTIONS come at the end."""
    backwards = list(calls_of(task).items())[::-1]
    backwards.sort(key=lambda item: (item[0] in SELECTIONS, item[0] in PRODUCTS))
    return [call for _, calls in backwards for call in calls]


def calls_of(task: Task) -> dict[str, list[Callable[[], object]]]:
    """The calls that compile each kernel that a task needs, by its name, in the order of first use."""
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
    """Call a kernel at its small test sizes: its parallel loops are compiled even if such sizes don't use them."""
    from .kernels.cases import CASES, with_scratch

    kernels = importlib.import_module(BACKENDS["numba"])
    for size in CASES[name].sizes:
        arguments = with_scratch(CASES[name].build(np.random.default_rng(0), **size), kernels)
        getattr(kernels, name)(*arguments.values())


def _small_model(task: Task) -> tuple[Model, Uses]:
    """A small model that needs the same kernels with the same argument types, and its uses."""
    fields, weights = task["config"], task["weights"]
    group = fields["heads"] // fields["kv_heads"]  # heads that share keys: attention on a cache is compiled for each
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
    """A parameter of zeros in a file's format."""
    kind = KINDS[name]
    is_packed = name != "F32"
    array = np.zeros((shape[0], kind.row_bytes(shape[1])), np.uint8) if is_packed else np.zeros(shape, np.float32)
    array.flags.writeable = is_writeable
    return Packed(array, kind) if is_packed else array


def _types(value: object) -> Any:
    """What Numba's compilation depends on in an argument."""
    if isinstance(value, tuple):
        return tuple(map(_types, value))
    if isinstance(value, np.ndarray):
        return value.dtype, value.ndim, value.flags.writeable, value.flags.c_contiguous
    return type(value)


def _noted(model: Model, uses: Uses) -> dict[str, list[Callable[[], object]]]:
    """The recorded calls of each kernel, one for each combination of types, in the order of first use."""
    from .kernels import reference

    noted: dict[str, dict[Hashable, Callable[[], object]]] = {}
    with listening(model._backend, reference) as calls, np.errstate(all="ignore"):
        exercise(model, uses)
    for kernel, arguments in calls:
        noted.setdefault(kernel.__name__, {}).setdefault(_types(arguments), partial(kernel, *arguments))
    return {name: list(of_types.values()) for name, of_types in noted.items()}
