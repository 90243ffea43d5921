"""Sequences of kernel calls that are repeated with the same arguments, without Python in between.

A call from Python takes 0.3 to 1 microseconds while the interpreter is in the CPU's caches. After a pass over all
weights it is not: calls took a tenth of a step of the smallest model, and a twentieth of a token of a model of 110
million weights.
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
    """Call the entry (entry.py) at an address with the address of its words; returns its status, 0 on success."""

    def codegen(context, builder, signature, arguments):
        address, words = arguments
        return builder.call(builder.inttoptr(address, ENTRY.as_pointer()), [words])

    return types.int32(types.int64, types.CPointer(types.int64)), codegen


@kernel
def _run(words):
    """Do all calls. Each is, in words: the address of its entry, how many words of arguments follow, and these.

    Returns how many calls succeeded: fewer than all if one failed, which ends the loop.
    """
    at = done = 0
    while at < words.shape[0]:
        if _call(words[at], advance(pointer(words), at + 2)) != 0:
            return done
        at += 2 + words[at + 1]
        done += 1
    return done


_entries: dict[Hashable, int] = {}  # addresses, by kernel and what determines the types of its arguments


class Replay:
    """A sequence of calls, as pairs of a kernel and its arguments, to be repeated.

    The arguments are fixed: their addresses, shapes and numbers are read once, here. What the arrays hold may change.
    """

    def __init__(self, calls: Sequence[tuple[Callable, tuple]]) -> None:
        # Kept, as this keeps the arrays alive.
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
        """Do all calls once."""
        done = _run(self._words)
        if done < len(self._calls):
            compiled, arguments = self._calls[done]
            compiled(*arguments)  # raises the error, which a status does not tell
            raise RuntimeError(f"{compiled.__name__} failed, but not when it was called again")
