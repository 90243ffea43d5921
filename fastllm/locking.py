"""Threads that share a model take turns: only one method of it runs at a time.

Where kernels can't run concurrently (Numba's workqueue threading layer), threads with different models take turns, too.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Shareable")


class Shareable:
    """An object that threads may share. Code that computes with it, or changes it, holds its lock."""

    def _make_lock(self, is_common: bool) -> None:
        """is_common  whether to use one lock for all such objects, so that only one of them computes at a time."""
        self._lock: Any = _common if is_common else threading.RLock()
        _shared.add(self)


_common: Any = threading.RLock()
_shared: weakref.WeakSet[Shareable] = weakref.WeakSet()


def _unlock() -> None:
    """Make new locks in a forked process: the threads that may have held the old ones don't exist there."""
    global _common
    before, _common = _common, threading.RLock()
    for shared in _shared:
        shared._lock = _common if shared._lock is before else threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def in_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorate a method to run while its object's lock is held; such methods may call each other."""

    @functools.wraps(method)
    def guarded(self: S, *arguments: P.args, **options: P.kwargs) -> R:
        with self._lock:
            return method(self, *arguments, **options)

    return guarded
