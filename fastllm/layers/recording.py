"""Passes through the layers, recorded and replayed: the same kernels on the same memory, with other numbers in it.

The kernels of a small model take a few microseconds each, and the layers' Python and the calls between them an eighth
of a training step, or half of a decoding one. So the second pass of a kind writes down which kernels it calls with
which arguments, and the next ones call them again, without Python. Nor do these wait for Python's lock (the GIL): each
kernel releases it, and while another thread runs Python, acquiring it again takes five milliseconds, a hundred times.

What a layer does between `forward` or `backward` and the kernels is thus done once for many passes. It may depend on
what is the same in all of them: parameters, scratch, the workspace's arrays, the sizes that are the key. It may not
compute anything itself, nor read a number out of the batch: only the batch's arrays are filled anew for each pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

from ..memory import Place
from .backend import Backend
from .batch import Batch
from .workspace import Workspace

R = TypeVar("R")
Call = tuple[Callable[..., object], tuple[Any, ...]]

# How many kinds of passes are recorded at one place: the first ones. Each takes twenty to fifty kilobytes, with thirty
# layers three hundred. Recording costs as much as ten to twenty replays gain, so only what comes a second time is
# recorded, and no recording is dropped to make room for another.
MOST = 256


class Recordings:
    """The recorded passes of a model. Its workspace holds them, and drops them all when activations move in memory."""

    def __init__(self, backend: Backend, workspace: Workspace) -> None:
        self._backend = backend
        self._by_place = workspace.recordings

    def run(self, place: Place, key: Hashable, batch: Batch, compute: Callable[[Batch], R]) -> R:
        """compute(batch), or its replay. It returns arrays that its kernels have written, or nothing.

        place  stands for the memory that the pass works on beside the model's own: the workspace's or a cache's
        key    two passes at a place make the same calls if their keys and the sizes of their batches' arrays are equal
        """
        known = self._by_place.get(place)
        if known is None:
            known = self._by_place[place] = {}
        arrays = batch.arrays()
        key = key, *map(len, arrays)
        recording = known.get(key)
        if recording is not None:
            return cast(R, recording.run(arrays))
        if key in known:
            recording = _Recording(self._backend, batch, compute)
            if self._by_place.get(place) is known:  # nothing has moved
                known[key] = recording
            return cast(R, recording.result)
        if len(known) < MOST:
            known[key] = None
        return compute(batch)

    def run_at_once(self, compute: Callable[[], R]) -> R:
        """compute(), with its kernels called in one go, without Python between them; nothing is kept.

        For passes beside other threads, which would wait for Python's lock after each kernel.
        """
        if isinstance(self._backend.kernels, _Listener):  # a recording is under way: it needs each call
            return compute()
        with listening(self._backend, _Nothing()) as calls:
            result = compute()
        self._backend.kernels.Replay(calls)()
        return result


class _Nothing:
    """Has functions of any name, which do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class _Recording:
    """The calls of one pass. It runs once, while it is recorded."""

    __slots__ = ("_arrays", "_replay", "result")

    def __init__(self, backend: Backend, batch: Batch, compute: Callable[[Batch], object]) -> None:
        batch = batch.copy()
        self._arrays = batch.arrays()
        with listening(backend, backend.kernels) as calls:
            self.result = compute(batch)
        self._replay = backend.kernels.Replay(calls)

    def run(self, arrays: list[np.ndarray]) -> object:
        for mine, new in zip(self._arrays, arrays, strict=True):
            mine[...] = new
        self._replay()
        return self.result


@contextmanager
def listening(backend: Backend, computing: ModuleType | _Nothing) -> Iterator[list[Call]]:
    """Within the block, list the calls of a backend's kernels; the functions of `computing` do the work."""
    listener = _Listener(backend.kernels, computing)
    try:
        backend.kernels = cast(ModuleType, listener)
        yield listener.calls
    finally:
        backend.kernels = listener.kernels


class _Listener:
    """Stands in for the kernels and lists their calls."""

    def __init__(self, kernels: ModuleType, computing: ModuleType | _Nothing) -> None:
        self.kernels = kernels
        self.calls: list[Call] = []
        self._computing = computing

    def __getattr__(self, name: str) -> Callable[..., object]:
        kernel, compute = getattr(self.kernels, name), getattr(self._computing, name)

        def call(*arguments: Any) -> object:
            self.calls.append((kernel, arguments))
            return compute(*arguments)

        return call
