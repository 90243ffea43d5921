"""The only file that names numba.njit: compiler flags, functions linked by symbol, chunks of parallel work.

Flags. error_model="numpy" spares a test before every division. Of LLVM's fast-math flags all are on but
`nnan` and `ninf`: with those, the compiler deletes tests for NaN and infinity. nogil lets another thread run
Python (a data loader, a progress bar) meanwhile.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

try:
    import numba
except ValueError as error:  # which does not name the setting
    if "NUMBA_NUM_THREADS" not in os.environ:
        raise
    given = os.environ["NUMBA_NUM_THREADS"]
    raise ValueError(f"NUMBA_NUM_THREADS must be a whole number above 0; got {given!r}; unset it") from error
from llvmlite import binding
from numba import get_num_threads, literally, prange, set_num_threads, types
from numba.core import event, sigutils
from numba.core.ccallback import CFunc
from numba.core.typing import Signature

from .disk_cache import FOLDER, keep_on_disk
from .entry import CompilerWithEntries
from .llvm import LINE

__all__ = [
    "Deferred",
    "Linked",
    "bounds",
    "calls_may_overlap",
    "chunk_count",
    "deferred",
    "get_num_threads",
    "guard_compilation",
    "inline",
    "is_same",
    "kernel",
    "literally",
    "piece",
    "prange",
    "prepared",
    "set_num_threads",
    "watch_compilation",
]

FLAGS = {"error_model": "numpy", "nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp", "afn"}}
# For sums whose order decides about their bits, and must not follow from how often a loop happens to run.
ORDERED = FLAGS | {"fastmath": FLAGS["fastmath"] - {"reassoc"}}

# A parallel region costs about 3.5 us to start (OpenMP layer), the time of a few thousand simple operations.
ELEMENTS_PER_CHUNK = 8192
MAX_CHUNKS = 64


_watchers: list[Callable[[str], None]] = []


def calls_may_overlap() -> bool:
    """Whether two threads may run kernels at once. Numba's own threads, the workqueue layer, end the process then.

    Numba takes a layer when it first needs one, the first that can be imported: so does this, and starts no thread.
    """
    layer = str(numba.config.THREADING_LAYER).lower()
    order = {"default": numba.config.THREADING_LAYER_PRIORITY, "forksafe": ["tbb", "workqueue"]}.get(layer, [layer])
    if "workqueue" not in order:
        return True
    return any(_can_be_imported(f"numba.np.ufunc.{name}pool") for name in order[: order.index("workqueue")])


def _can_be_imported(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def kernel(function: Callable | None = None, *, parallel: bool = False, calls: Linked | None = None) -> Callable:
    """Compile on first call, with the flags of this library; `parallel` makes prange loops run on all threads.

    calls  functions that it calls by their symbols, compiled before it
    """
    if function is None:
        return lambda f: kernel(f, parallel=parallel, calls=calls)
    compiled = numba.njit(
        function, parallel=parallel, no_cfunc_wrapper=True, pipeline_class=CompilerWithEntries, **FLAGS
    )
    keep_on_disk(compiled, function)
    if not numba.config.DISABLE_JIT:  # else it is a Python function, as doctor will say
        compiled.compile = _after(calls, compiled.compile)
    return compiled


def _after(calls: Linked | None, compile_kernel: Callable) -> Callable:
    """What compiles a kernel, or reads it from the disk, once what it calls is there."""

    def compile_all(signature: Any) -> Any:
        if calls is not None:
            calls.compile()
        with _guard():
            return compile_kernel(signature)

    return compile_all


def prepared(prepare: Callable[..., tuple[Callable, tuple]]) -> Callable:
    """A kernel that only arranges its arguments for another one, which is compiled.

    prepare  returns that kernel and the arguments for it; replay.py calls this directly
    """

    @wraps(prepare)
    def call(*arguments: Any, **named: Any) -> None:
        compiled, made = prepare(*arguments, **named)
        compiled(*made)

    call.prepare = prepare
    return call


_guard: Callable[[], AbstractContextManager[object]] = nullcontext


def guard_compilation(block: Callable[[], AbstractContextManager[object]]) -> None:
    """Compile each function within such a block: Numba does not stand being interrupted in the middle."""
    global _guard
    _guard = block


class Linked:
    """Functions that kernels call by a symbol, as they would a C library's.

    Numba copies what a kernel calls into the kernel, and optimises it there again: into a parallel kernel
    three times. For the small functions of an elementwise kernel that is right. The matrix product, which a dozen
    functions call, would be compiled thirty times, most of the first start. So it and its kind are
    compiled once, under a name, and LLVM's linker finds them; and so are the loops of parallel kernels that every
    first start waits for, which takes half the time or less.

        linked = Linked()

        @linked(types.void(types.int64))
        def work(n): ...

        @kernel(calls=linked)
        def all_work(): ...

    calls  those whose functions these call
    """

    def __init__(self, *calls: Linked) -> None:
        self._calls = calls
        self._waiting: list[tuple[str, Signature, Callable, bool]] = []
        self._compiled: list[object] = []

    def __call__(self, signature: Signature, ordered: bool = False) -> Callable:
        """A decorator for a function of pointers and numbers that returns nothing.

        ordered  sums are added up in the order that is written down
        """

        def declare(function: Callable) -> types.ExternalFunction:
            symbol = f"fastllm_{function.__module__.rpartition('.')[2]}_{function.__name__}"
            self._waiting.append((symbol, signature, function, ordered))
            return types.ExternalFunction(symbol, signature)

        return declare

    def compile(self) -> None:
        """Compile, or read from the cache, what is declared so far, in that order; a second call does nothing."""
        for calls in self._calls:
            calls.compile()
        for symbol, signature, function, ordered in self._waiting:
            compiled = _compile_for_c(signature, function, ordered)
            binding.add_symbol(symbol, compiled.address)
            self._compiled.append(compiled)  # keeps the machine code alive
        self._waiting.clear()


class Deferred:
    """A function that kernels call by its address, compiled when that is first asked for; its sums are in order.

    So must be those of what it inlines. For functions of which a program needs few: which, is known when it runs.
    """

    def __init__(self, signature: Signature, function: Callable) -> None:
        self._signature = signature
        self._function = function

    @cached_property
    def address(self) -> int:
        """Where the machine code is."""
        self._compiled = _compile_for_c(self._signature, self._function, ordered=True)  # keeps it alive
        return self._compiled.address


def deferred(signature: Signature, name: str) -> Callable[[Callable], Deferred]:
    """A decorator for a function of pointers and numbers that returns nothing.

    name  of no other: the disk cache and LLVM know functions by their names, and those made in a loop share one
    """

    def defer(function: Callable) -> Deferred:
        function.__name__ = function.__qualname__ = name
        return Deferred(signature, function)

    return defer


def _compile_for_c(signature: Signature, function: Callable, ordered: bool) -> Any:
    """Machine code that is called as a C function is."""
    options = ORDERED if ordered else FLAGS
    with _guard():
        compiled = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=options)
        keep_on_disk(compiled, function)
        compiled.compile()
    if not compiled.cache_hits:
        for report in _watchers:
            report(function.__name__)
    return compiled


def inline(function: Callable | None = None, *, ordered: bool = False) -> Callable:
    """A function for use inside kernels: compiled with the same flags, always inlined, not cached alone.

    Left to LLVM, some would be called by a symbol; and a process that compiles has two of that name, optimised
    differently, where one that reads the kernel from the disk has one. Their results differed in the last bit.
    Python cannot call it: wrappers for that, of ninety such functions, took a seventh of the first start.

    ordered  sums and products are done in the order that is written down; what it is copied into does not decide
    """
    if function is None:
        return lambda f: inline(f, ordered=ordered)
    flags = ORDERED if ordered else FLAGS
    return numba.njit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, **flags)


@inline
def is_same(a, b):
    """Whether two arrays begin at one address.

    LLVM vectorises a loop over two arrays that might overlap behind a test that they do not, and runs it
    element by element if they do. So where a result may go to where an input stands, a kernel has a loop of its
    own for that, which names one array only.
    """
    return a.ctypes.data == b.ctypes.data


@inline
def bounds(size, chunk, chunks):
    """First element of a chunk of so many, and of the next: whole cache lines, lest two threads share one."""
    lines = (size + LINE - 1) // LINE
    return lines * chunk // chunks * LINE, min(size, lines * (chunk + 1) // chunks * LINE)


@inline
def piece(flat, chunk, chunks):
    """One chunk of a flat array, as a view.

    Kernels take such views and count from 0. In a loop that begins elsewhere Numba tests each index for being
    negative, and that test keeps LLVM from vectorising: AdamW was 3.7 times slower with it.
    """
    start, stop = bounds(flat.shape[0], chunk, chunks)
    return flat[start:stop]


@inline
def chunk_count(elements):
    """How many parallel chunks a loop over so many elements is cut into.

    It depends on the size alone, never on the threads, so partial sums are the same on any machine.
    """
    return min(MAX_CHUNKS, max(1, elements // ELEMENTS_PER_CHUNK))


@contextmanager
def watch_compilation(report: Callable[[str], None]) -> Iterator[None]:
    """Call report(its name) whenever a kernel of this library is compiled, within the block.

    A kernel that comes from the disk cache does not compile and is not reported.
    """

    class Listener(event.Listener):
        def on_start(self, event: event.Event) -> None:
            dispatcher = event.data["dispatcher"]
            if Path(dispatcher.py_func.__code__.co_filename).parent == FOLDER:
                report(dispatcher.py_func.__name__)

        def on_end(self, event: event.Event) -> None:
            pass

    _watchers.append(report)
    try:
        with event.install_listener("numba:compile", Listener()):
            yield
    finally:
        _watchers.remove(report)
