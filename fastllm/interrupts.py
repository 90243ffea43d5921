"""Ctrl-C, where it must not come in between."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import ClassVar, Self


class uninterrupted:
    """A block that Ctrl-C leaves whole: it takes effect behind it. A second one takes effect at once.

    It is just the block on another thread than the main one, which no signal interrupts, and where somebody else
    handles Ctrl-C.

    is_short  a second one waits too, within a longer block as well
    came      whether Ctrl-C has been pressed: a long block may end at the next good place then
    """

    _holding: ClassVar[uninterrupted | None] = None  # whom the main thread's Ctrl-C goes to, if it is one of these

    def __init__(self, is_short: bool = False) -> None:
        self._is_short = is_short
        self._held_by: uninterrupted | None = None
        self._presses = 0
        self._waits = 0  # short blocks that are running

    @property
    def came(self) -> bool:
        return self._presses > 0

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        around = uninterrupted._holding
        if around is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            around = self
        self._held_by = around
        if around is not None:
            around._waits += self._is_short
        if around is self:
            signal.signal(signal.SIGINT, self._note)
            uninterrupted._holding = self
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._presses += 1
        if self._presses > 1 and not self._waits:
            self._interrupt()

    def _interrupt(self) -> None:
        """Wherever this comes, nobody is left holding Ctrl-C."""
        self._let_go()
        raise KeyboardInterrupt

    def _let_go(self) -> None:
        uninterrupted._holding = None  # in this order: what is pressed in between is noted
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        around = self._held_by
        if around is self:
            self._let_go()
            if self.came and error is None:
                raise KeyboardInterrupt
        elif around is not None and self._is_short:
            around._waits -= 1
            if around._presses > 1 and not around._waits and error is None:
                around._interrupt()
