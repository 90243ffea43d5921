"""Ctrl-C, where it must not come in between."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # it makes no enumerations: a tenth of the time
import signal
import threading
from types import FrameType
from typing import Self


class uninterrupted:
    """A block that Ctrl-C leaves whole: it takes effect behind it. A second one takes effect at once.

    It does nothing on another thread than the main one, which no signal interrupts, and where another handler of
    Ctrl-C is installed.

    is_short  a second one waits too, within a longer block as well
    came      whether Ctrl-C has been pressed: a long block may end at the next good place then
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
        """Wherever this comes, nobody is left holding Ctrl-C."""
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
