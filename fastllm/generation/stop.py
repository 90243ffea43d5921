"""Stop strings in a stream of text pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string to be completed; then `found` is true.

    Text that may be the beginning of a stop string is held back until later pieces decide, so the result doesn't
    depend on how the text is cut into pieces.

    >>> watch = StopStrings(["END"])
    >>> watch.push("all E"), watch.push("very E"), watch.push("ND more"), watch.found
    ('all ', 'Every ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found = False
        self._waiting = ""

    def push(self, piece: str) -> str:
        """The text that may be shown now."""
        text = self._waiting + piece
        hits = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if hits:
            self.found = True
            _, start = min(hits)
            self._waiting = ""
            return text[:start]
        shown = len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
        self._waiting = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The text still held back, at the end of the text: it was no stop string."""
        text, self._waiting = self._waiting, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
