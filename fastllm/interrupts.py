"""Blocks of code that Ctrl-C must not break off."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without signal's enums: takes a tenth of the time
import signal
import threading
from types import FrameType
from typing import Self

ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a process: `kill`, and a terminal that is closed, which Windows doesn't have."""


class uninterrupted:
    """A block that Ctrl-C doesn't break off: it takes effect after the block. A second Ctrl-C takes effect at once.

    Does nothing on threads other than the main one, which signals don't interrupt, or if another handler of Ctrl-C is
    installed.

    is_short  a second Ctrl-C waits, too, also if this block is inside a longer one
    came      whether Ctrl-C has been pressed: a long block can then end at the next good place
    """

    def __init__(self, is_short: bool = False) -> None:
        self._is_short = is_short
        self._held_by: uninterrupted | None = None
        self._presses = 0
        self._waits = 0  # short blocks that are running

    @property
    def came(self) -> bool:
        return (self._held_by or self)._presses > 0

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        handler = _signal.getsignal(signal.SIGINT)
        around = getattr(handler, "__self__", None)
        if isinstance(around, uninterrupted):
            self._held_by = around
        elif handler is signal.default_int_handler:
            self._held_by = self
        if self._held_by is not None:
            self._held_by._waits += self._is_short
        if self._held_by is self:
            _signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._presses += 1
        if self._presses > 1 and not self._waits:
            self._interrupt()

    def _interrupt(self) -> None:
        """Restore Python's handler before raising: the exception may come at any place, even within __exit__."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        around = self._held_by
        if around is self:
            _signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.came and error is None:
                raise KeyboardInterrupt
        elif around is not None and self._is_short:
            around._waits -= 1
            if around._presses > 1 and not around._waits and error is None:
                around._interrupt()
