"""Passes through the layers that are done again: the same kernels on the same memory, which holds other numbers.

The kernels of a small model take a few microseconds each, and the layers' Python and the calls between them an eighth
of a training step, or half of a decoding one. So the second pass of a kind writes down which kernels it calls with
which arguments, and the next ones call them again, without Python. Nor do these wait for Python: a kernel gives its
lock back, and to have that again takes five milliseconds while another thread runs Python, after each of a hundred.

What a layer does between `forward` or `backward` and the kernels is thus done once for many passes. It may depend on
what is the same in all of them: parameters, scratch, the workspace's arrays, the sizes that are the key. It may not
compute anything itself, nor take a number out of the batch: from that come arrays only, which are filled anew.
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

# Kinds of passes at one place that are recorded: the first that there are, each in twenty to fifty kilobytes, or three
# hundred of thirty layers. To record costs as much as ten to twenty passes gain, so nothing is recorded that is not
# used, and no place is made for others.
MOST = 256


class Recordings:
    """A model's. Its workspace holds them, and forgets them all when activations move."""

    def __init__(self, backend: Backend, workspace: Workspace) -> None:
        self._backend = backend
        self._of = workspace.recordings

    def run(self, place: Place, key: Hashable, batch: Batch, compute: Callable[[Batch], R]) -> R:
        """compute(batch), which returns arrays that its kernels have written, or nothing.

        place  of the memory that passes work on, beside the model's own
        key    passes there are the same calls if theirs are equal, and the sizes of their batches' arrays
        """
        known = self._of.get(place)
        if known is None:
            known = self._of[place] = {}
        arrays = batch.arrays()
        key = key, *map(len, arrays)
        recording = known.get(key)
        if recording is not None:
            return cast(R, recording.run(arrays))
        if key in known:
            recording = _Recording(self._backend, batch, compute)
            if self._of.get(place) is known:  # nothing has moved
                known[key] = recording
            return cast(R, recording.result)
        if len(known) < MOST:
            known[key] = None
        return compute(batch)

    def run_at_once(self, compute: Callable[[], R]) -> R:
        """compute(), whose kernels then follow one another without Python: for once, beside other threads."""
        if isinstance(self._backend.kernels, _Listener):  # who listens hears each kernel as it is called
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
    """What one pass called: it has just run."""

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
    """Write down which kernels of a backend are called within, in a list; the functions of a module compute."""
    listener = _Listener(backend.kernels, computing)
    try:
        backend.kernels = cast(ModuleType, listener)
        yield listener.calls
    finally:
        backend.kernels = listener.kernels


class _Listener:
    """Stands in the place of the kernels, and writes down what is called."""

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
