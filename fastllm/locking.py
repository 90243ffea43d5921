"""Threads that share a model take turns, each method of it a turn.

So do those with models of their own, where kernels can't run at once.
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
    """What threads may share. Whoever computes with it, or changes it, holds its lock."""

    def _make_lock(self, is_common: bool) -> None:
        """is_common  the one lock of all such objects, so that only one of them computes at a time."""
        self._lock: Any = _common if is_common else threading.RLock()
        _shared.add(self)


_common: Any = threading.RLock()
_shared: weakref.WeakSet[Shareable] = weakref.WeakSet()


def _unlock() -> None:
    """In a process that has been forked: threads that held locks are not there."""
    global _common
    before, _common = _common, threading.RLock()
    for shared in _shared:
        shared._lock = _common if shared._lock is before else threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def in_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that is run while its object's lock is held; it may call others that are."""

    @functools.wraps(method)
    def guarded(self: S, *arguments: P.args, **options: P.kwargs) -> R:
        with self._lock:
            return method(self, *arguments, **options)

    return guarded
