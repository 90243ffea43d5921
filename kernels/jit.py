"""The only file that names numba.njit: compiler flags, functions linked by symbol, chunks of parallel work.

error_model="numpy" saves a test for zero before every division. All of LLVM's fast-math flags are on except `nnan` and
`ninf`, with which the compiler would delete tests for NaN and infinity. nogil lets other threads run Python (a data
loader, a progress bar) while a kernel runs.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

try:
    import numba
except ValueError as error:  # its message does not name the setting
    if "NUMBA_NUM_THREADS" not in os.environ:
        raise
    given = os.environ["NUMBA_NUM_THREADS"]
    raise ValueError(f"NUMBA_NUM_THREADS must be a whole number above 0; got {given!r}; unset it") from error
from llvmlite import binding
from numba import get_num_threads, literally, prange, set_num_threads, types
from numba.core import event, sigutils
from numba.core.ccallback import CFunc
from numba.core.typing import Signature

from .code_library import compiling
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
    "thread_limit",
    "watch_compilation",
]

FLAGS = {"error_model": "numpy", "nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp", "afn"}}
# For sums whose bits must be the same in every call: reassociated, their order depends on how often a loop runs.
ORDERED = FLAGS | {"fastmath": FLAGS["fastmath"] - {"reassoc"}}

# Starting a parallel region takes about 3.5 us (OpenMP layer), as long as a few thousand simple operations.
ELEMENTS_PER_CHUNK = 8192
MAX_CHUNKS = 64
# Arguments of inlined functions that Numba takes for int64, whatever integers they are. The variable of a prange loop
# is an int64 at first, and a uint64 when the loop's body has become a function, and a literal has a type of its own: so
# most of these functions were compiled three times.
COUNTERS = frozenset({"chunk", "chunks", "part", "parts", "start", "stop"})


_watchers: list[Callable[[str], None]] = []


def thread_limit() -> int:
    """Most threads that kernels may run on: NUMBA_NUM_THREADS, or all cores where Numba finds no number there."""
    return numba.config.NUMBA_NUM_THREADS


def calls_may_overlap() -> bool:
    """Whether two threads may run kernels at once. If Numba's threading layer is workqueue, that ends the process.

    When Numba first needs a layer, it takes the first that can be imported. This looks for the same one, without
    starting its threads.
    """
    layer = str(numba.config.THREADING_LAYER).lower()
    safe = ["tbb", "workqueue"] if sys.platform.startswith("linux") else ["tbb", "omp", "workqueue"]
    order = {"default": numba.config.THREADING_LAYER_PRIORITY, "forksafe": safe}.get(layer, [layer])
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
    if not numba.config.DISABLE_JIT:  # with NUMBA_DISABLE_JIT it is a plain function, which `doctor` reports
        compiled.compile = _after(calls, compiled.compile)
    return compiled


def _after(calls: Linked | None, compile_kernel: Callable) -> Callable:
    """compile_kernel, but the functions that the kernel calls are compiled before it (or read from the disk)."""

    def compile_all(signature: Any) -> Any:
        if calls is not None:
            calls.compile()
        with _guard(), compiling():
            return compile_kernel(signature)

    return compile_all


def prepared(prepare: Callable[..., tuple[Callable, tuple]]) -> Callable:
    """A decorator for a kernel that, in Python, only prepares the arguments of another one, which is compiled.

    prepare  returns that kernel and its arguments; replay.py calls prepare once and repeats what it returned
    """

    @wraps(prepare)
    def call(*arguments: Any, **named: Any) -> None:
        compiled, made = prepare(*arguments, **named)
        compiled(*made)

    call.prepare = prepare
    return call


_guard: Callable[[], AbstractContextManager[object]] = nullcontext


def guard_compilation(block: Callable[[], AbstractContextManager[object]]) -> None:
    """Compile each function within block(), a context manager that defers interrupts: Numba can't cope with them."""
    global _guard
    _guard = block


class Linked:
    """Functions that kernels call by symbol, as they would call a C library.

    Numba copies each function that a kernel calls into the kernel and optimises it again there, three times in a
    parallel kernel. That is right for the small functions of an elementwise kernel. But the matrix product, which a
    dozen functions call, would be compiled thirty times, which would be most of the first start. So such functions are
    compiled once, under a symbol that LLVM's linker finds. So are the loops of the parallel kernels that every first
    start waits for, which at least halves the time they take to compile.

        linked = Linked()

        @linked(types.void(types.int64))
        def work(n): ...

        @kernel(calls=linked)
        def all_work(): ...

    calls  the Linked that hold functions which these functions call
    """

    def __init__(self, *calls: Linked) -> None:
        self._calls = calls
        self._waiting: list[tuple[str, Signature, Callable, bool]] = []
        self._compiled: list[object] = []

    def __call__(self, signature: Signature, ordered: bool = False) -> Callable:
        """A decorator for a function of pointers and numbers that returns nothing.

        ordered  sums are added up in the order in which they are written
        """

        def declare(function: Callable) -> types.ExternalFunction:
            symbol = f"fastllm_{function.__module__.rpartition('.')[2]}_{function.__name__}"
            self._waiting.append((symbol, signature, function, ordered))
            return types.ExternalFunction(symbol, signature)

        return declare

    def compile(self) -> None:
        """Compile (or read from the disk) all functions declared since the last call, in the order of declaration."""
        for calls in self._calls:
            calls.compile()
        for symbol, signature, function, ordered in self._waiting:
            compiled = _compile_for_c(signature, function, ordered)
            binding.add_symbol(symbol, compiled.address)
            self._compiled.append(compiled)  # keeps the machine code alive
        self._waiting.clear()


class Deferred:
    """A function that kernels call by address, compiled when the address is first asked for.

    For sets of functions of which a program needs a few, and which ones is known only at run time. Sums are added up in
    the order in which they are written; functions that it inlines must be ordered too.
    """

    def __init__(self, signature: Signature, function: Callable) -> None:
        self._signature = signature
        self._function = function

    @cached_property
    def address(self) -> int:
        """The address of the machine code."""
        self._compiled = _compile_for_c(self._signature, self._function, ordered=True)  # keeps it alive
        return self._compiled.address


def deferred(signature: Signature, name: str) -> Callable[[Callable], Deferred]:
    """A decorator for a function of pointers and numbers that returns nothing.

    name  unique: the disk cache and LLVM know functions by name, and functions made in a loop would share one
    """

    def defer(function: Callable) -> Deferred:
        function.__name__ = function.__qualname__ = name
        return Deferred(signature, function)

    return defer


def _compile_for_c(signature: Signature, function: Callable, ordered: bool) -> Any:
    """Compile a function (or read it from the disk) to machine code with C's calling convention."""
    options = ORDERED if ordered else FLAGS
    with _guard(), compiling():
        compiled = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=options)
        keep_on_disk(compiled, function)
        compiled.compile()
    if not compiled.cache_hits:
        for report in _watchers:
            report(function.__name__)
    return compiled


def inline(function: Callable | None = None, *, ordered: bool = False) -> Callable:
    """A decorator for a function used inside kernels: the same flags, always inlined, no cache entry of its own.

    If LLVM chose, some would be called by symbol. A process that compiles then has two functions of that name,
    optimised differently, and a process that reads the kernel from the disk has one: results differed in the last bit.
    Python cannot call these functions: for ninety of them, wrappers took a seventh of the first start. Their arguments
    with the names in COUNTERS are int64.

    ordered  sums and products are done in the order in which they are written, whatever flags the caller has
    """
    if function is None:
        return lambda f: inline(f, ordered=ordered)
    flags = ORDERED if ordered else FLAGS
    compiled = numba.njit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, **flags)
    if not numba.config.DISABLE_JIT:
        compiled.get_call_template = _counting_in_int64(function, compiled.get_call_template)
    return compiled


def _counting_in_int64(function: Callable, get_call_template: Callable) -> Callable:
    """get_call_template, but each of COUNTERS has the same type in every call of the function."""
    names = tuple(inspect.signature(function).parameters)

    def plain(name: str, kind: types.Type) -> types.Type:
        is_counter = name in COUNTERS and isinstance(types.unliteral(kind), types.Integer)
        return types.int64 if is_counter else kind

    def get(arguments: tuple[types.Type, ...], named: dict[str, types.Type]) -> Any:
        return get_call_template(
            tuple(map(plain, names, arguments)), {name: plain(name, kind) for name, kind in named.items()}
        )

    return get


@inline
def is_same(a, b):
    """Whether two arrays begin at the same address.

    For a loop over two arrays that might overlap, LLVM emits a test: if they do not overlap, the vectorised loop runs,
    else a scalar one. So a kernel that may write its result over its input has a second loop for that case, which uses
    only one of the two arrays.
    """
    return a.ctypes.data == b.ctypes.data


@inline
def bounds(size, chunk, chunks):
    """Where one of `chunks` chunks of `size` floats starts and stops: whole cache lines, so that threads share none."""
    lines = (size + LINE - 1) // LINE
    return lines * chunk // chunks * LINE, min(size, lines * (chunk + 1) // chunks * LINE)


@inline
def piece(flat, chunk, chunks):
    """One of `chunks` chunks of a flat float32 array, as a view.

    Kernels loop over such views from 0. In a loop that starts elsewhere, Numba tests whether each index is negative,
    which keeps LLVM from vectorising: AdamW took 3.7 times as long.
    """
    start, stop = bounds(flat.shape[0], chunk, chunks)
    return flat[start:stop]


@inline
def chunk_count(elements):
    """How many parallel chunks a loop over `elements` elements is cut into.

    It depends on the size alone, never on the number of threads, so partial sums are the same with any number.
    """
    return min(MAX_CHUNKS, max(1, elements // ELEMENTS_PER_CHUNK))


@contextmanager
def watch_compilation(report: Callable[[str], None]) -> Iterator[None]:
    """Within the block, call report(name) for each function of this package that is compiled.

    Those read from the disk cache are not reported.
    """

    _watchers.append(report)
    try:
        with event.install_listener("numba:compile", _Listener(report)):
            yield
    finally:
        _watchers.remove(report)


class _Listener(event.Listener):
    """Hears of each kernel that Numba begins to compile."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def on_start(self, event: event.Event) -> None:
        function = event.data["dispatcher"].py_func
        if Path(function.__code__.co_filename).parent == FOLDER:
            self._report(function.__name__)

    def on_end(self, event: event.Event) -> None:
        pass
