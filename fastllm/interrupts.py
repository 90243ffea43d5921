"""Ctrl-C, where it must not come in between."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self


class uninterrupted:
    """A block that Ctrl-C leaves whole: it takes effect behind it. A second one takes effect at once.

    It is just the block on another thread than the main one, which no signal interrupts, within another such block, and
    where somebody else handles Ctrl-C.

    came  whether Ctrl-C has been pressed: a long block may end at the next good place then
    """

    def __init__(self) -> None:
        self.came = self._is_held = False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._is_held = True
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._is_held:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.came and error is None:
                raise KeyboardInterrupt
