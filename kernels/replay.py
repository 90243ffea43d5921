"""Calls of kernels that are done again and again, with the same arguments: without Python in between.

A call from Python takes 0.3 to 1 microseconds where all of Python is in the cache. Behind a pass over all weights it is
not: of a step of the smallest model, calls took a tenth, of a token of a model of 110 million weights a twentieth.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numba import types
from numba.extending import intrinsic

from .entry import ENTRY, entry_of, words_of
from .jit import kernel
from .simd import advance, pointer

__all__ = ["Replay"]


@intrinsic
def _call(typingctx, address, words):
    """What the function at an address returns, given the address of its words."""

    def codegen(context, builder, signature, arguments):
        address, words = arguments
        return builder.call(builder.inttoptr(address, ENTRY.as_pointer()), [words])

    return types.int32(types.int64, types.CPointer(types.int64)), codegen


@kernel
def _run(words):
    """Do all calls: of each there is the address of its function, how many words follow, and these.

    Returns how many have been done: of an array of words that is the number of all, unless one has failed.
    """
    at = done = 0
    while at < words.shape[0]:
        if _call(words[at], advance(pointer(words), at + 2)) != 0:
            return done
        at += 2 + words[at + 1]
        done += 1
    return done


_entries: dict[Hashable, int] = {}  # by kernels and what decides about the types of their arguments


class Replay:
    """Calls of kernels: pairs of a kernel and its arguments, whose arrays stay where they are in memory."""

    def __init__(self, calls: Sequence[tuple[Callable, tuple]]) -> None:
        # Kept, for the arrays to stay.
        self._calls = [one.prepare(*given) if hasattr(one, "prepare") else (one, given) for one, given in calls]
        words: list[int] = []
        for compiled, arguments in self._calls:
            its: list[int] = []
            kind = compiled, words_of(arguments, its)
            if kind not in _entries:
                _entries[kind] = entry_of(compiled, arguments)
            words += [_entries[kind], len(its), *its]
        self._words = np.array(words, np.int64)

    def __call__(self) -> None:
        """Do them once more."""
        done = _run(self._words)
        if done < len(self._calls):
            compiled, arguments = self._calls[done]
            compiled(*arguments)  # which says why
            raise RuntimeError(f"{compiled.__name__} failed, but not when it was called again")
