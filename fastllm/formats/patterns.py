"""Regular expressions that strangers' files bring, matched in few steps whatever they are.

Python's re tries one way after another, of which (a|a)(a|a)(a|a)... has 2^n. Here a part of a pattern gives, for a
place in the text, all places where it can end, as the bits of a number; parts are put together by the sets of their
ends, and no way is gone twice. What that can't bound, nested repetitions, is bounded by counting steps.

There is of Python's syntax: . ^ $ [...] \\d \\w \\s \\b \\A \\Z and their opposites, groups, (?=...), (?!...), |, and
* + ? {m,n}, greedy or not, which for a match of the whole text is the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from fastllm.errors import FormatError
from fastllm.small_files import brief

STEPS = 5_000_000
"""Taken by all matches of a Matcher together: a second or two. Those of a large model's adapter take a hundredth."""
MOST_SOURCE = 2000
"""Characters of a pattern. Long ones in use have 500."""
DEEPEST = 40
"""Groups in groups."""

STRAIGHT = re.compile(r"[\w.\-]*")
"""Patterns that neither repeat nor branch: re has one way to go."""
REPEAT = re.compile(r"\{(\d*)(,?)(\d*)\}")

KINDS: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda character: character.isalnum() or character == "_",
    "s": str.isspace,
}
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}

Ends = Callable[[str, int], int]
"""Of a part of a pattern: text, place -> the places where it may end, each a bit."""


class Matcher:
    """Matches texts with patterns, all together in at most `steps` steps."""

    def __init__(self, steps: int = STEPS) -> None:
        self.left = steps
        self._patterns: dict[str, Ends] = {}

    def fullmatch(self, pattern: str, text: str) -> bool:
        """Whether the whole text is what the pattern says, as re.fullmatch has it.

        Raises FormatError for a pattern that is none, that has what isn't there, or that takes too many steps.
        """
        if pattern not in self._patterns:
            self._patterns[pattern] = self._straight(pattern) or _Parser(pattern, self).whole()
        return bool(self._patterns[pattern](text, 0) >> len(text) & 1)

    def endmatch(self, pattern: str, name: str) -> bool:
        """Whether a name, or what follows one of its dots, is what the pattern says. Raises as fullmatch does."""
        if not STRAIGHT.fullmatch(pattern):
            return self.fullmatch(rf"(.*\.)?({pattern})", name)
        self.spend()
        at = len(name) - len(pattern)  # such a pattern takes as many characters as it has
        return at >= 0 and (at == 0 or name[at - 1] == ".") and self.fullmatch(pattern, name[at:])

    def _straight(self, pattern: str) -> Ends | None:
        """Of a pattern that re can be trusted with."""
        if len(pattern) > MOST_SOURCE or not STRAIGHT.fullmatch(pattern):
            return None
        compiled = re.compile(pattern)

        def ends(text: str, at: int) -> int:
            self.spend()
            return 1 << len(text) if compiled.fullmatch(text, at) else 0

        return ends

    def spend(self, steps: int = 1) -> None:
        """Raise FormatError when all steps are taken."""
        self.left -= steps
        if self.left < 0:
            raise FormatError("patterns must match in few steps; got some that go on and on; write them more simply")


class _Parser:
    def __init__(self, source: str, matcher: Matcher) -> None:
        self._source = source
        self._matcher = matcher
        self._at = 0
        self._depth = 0

    def whole(self) -> Ends:
        if len(self._source) > MOST_SOURCE:
            self._fail(f"at most {MOST_SOURCE} characters")
        ends = self._alternatives()
        if self._at < len(self._source):
            self._fail("a ( for each )")
        return ends

    def _fail(self, rule: str) -> NoReturn:
        raise FormatError(
            f"a pattern must have {rule}; got {brief(self._source)} at character {self._at + 1}; write it otherwise"
        )

    def _take(self, text: str) -> bool:
        """Go past a text if it comes next."""
        if not self._source.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _next(self) -> str:
        """The next character, gone past."""
        if self._at >= len(self._source):
            self._fail("an end where it is complete")
        self._at += 1
        return self._source[self._at - 1]

    def _alternatives(self) -> Ends:
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail(f"at most {DEEPEST} groups in one another")
        choices = [self._sequence()]
        while self._take("|"):
            choices.append(self._sequence())
        self._depth -= 1
        return choices[0] if len(choices) == 1 else _either(choices, self._matcher)

    def _sequence(self) -> Ends:
        parts = []
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            parts.append(self._quantified())
        return _sequence(parts, self._matcher)

    def _quantified(self) -> Ends:
        part, is_place = self._atom()
        bounds = self._bounds()
        if bounds is None:
            return part
        if is_place:
            self._fail("something to repeat")
        low, high = bounds
        if self._take("+"):
            self._fail("no repetition that keeps what it has")
        self._take("?")  # not greedy: the ends are the same
        if self._bounds() is not None:
            self._fail("one repetition after another only in groups")
        return _repeated(part, low, high, self._matcher)

    def _bounds(self) -> tuple[int, int | None] | None:
        """How often what stands before is repeated, None where nothing says so."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        found = REPEAT.match(self._source, self._at)
        if found is None or found[0] == "{}":  # as in Python, {} and {x} are texts
            return None
        if len(found[1]) > 9 or len(found[3]) > 9:
            self._fail("repetitions of at most nine digits")
        self._at = found.end()
        low = int(found[1] or 0)
        high = low if not found[2] else int(found[3]) if found[3] else None
        if high is not None and high < low:
            self._fail("a least repetition below the most")
        return low, high

    def _atom(self) -> tuple[Ends, bool]:
        """A part, and whether it is a place rather than a text."""
        character = self._next()
        if character == "(":
            return self._group(), False
        if character == "[":
            return self._one_of(self._class()), False
        if character == "\\":
            return self._escape()
        if character == ".":
            return self._one_of(lambda other: other != "\n"), False
        if character == "^":
            return _place(lambda text, at: at == 0), True
        if character == "$":
            return _place(_is_end), True
        if character in "*+?":
            self._fail("something to repeat")
        return self._one_of(lambda other: other == character), False

    def _one_of(self, is_it: Callable[[str], bool]) -> Ends:
        def ends(text: str, at: int) -> int:
            return 2 << at if at < len(text) and is_it(text[at]) else 0

        return ends

    def _group(self) -> Ends:
        if not self._source.startswith("?", self._at) or self._take("?:"):
            inner = self._alternatives()
        elif self._take("?="):
            part = self._alternatives()
            inner = _place(lambda text, at: part(text, at) != 0)
        elif self._take("?!"):
            other = self._alternatives()
            inner = _place(lambda text, at: other(text, at) == 0)
        elif found := re.compile(r"\?P<[^\W\d]\w*>").match(self._source, self._at):
            self._at = found.end()
            inner = self._alternatives()
        else:
            self._fail("of groups with a ? only (?:...), (?=...), (?!...) and (?P<name>...)")
        if not self._take(")"):
            self._fail("a ) for each (")
        return inner

    def _escape(self) -> tuple[Ends, bool]:
        character = self._next()
        if character in "AZ":
            return _place((lambda text, at: at == 0) if character == "A" else (lambda text, at: at == len(text))), True
        if character in "bB":
            is_border = character == "b"
            return _place(lambda text, at: _is_border(text, at) == is_border), True
        return self._one_of(self._kind(character)), False

    def _kind(self, character: str) -> Callable[[str], bool]:
        """What the character after a backslash stands for."""
        if character.lower() in KINDS:
            is_it, is_wanted = KINDS[character.lower()], character.islower()
            return lambda other: is_it(other) == is_wanted
        if character.isascii() and character.isalnum() and character not in CONTROLS:
            self._fail("of \\ with a letter or digit only \\d \\w \\s \\b \\A \\Z and the like")
        meant = CONTROLS.get(character, character)
        return lambda other: other == meant

    def _class(self) -> Callable[[str], bool]:
        is_wanted = not self._take("^")
        choices: list[Callable[[str], bool]] = []
        while not choices or not self._take("]"):
            low = self._next()
            if low == "\\":
                escaped = self._next()
                if escaped.lower() in KINDS:
                    choices.append(self._kind(escaped))
                    continue
                self._kind(escaped)  # raises
                low = CONTROLS.get(escaped, escaped)
            high = low
            if self._source.startswith("-", self._at) and not self._source.startswith("-]", self._at):
                self._at += 1
                high = self._next()
                if high in "\\[" or high < low:
                    self._fail("ranges such as a-z")
            choices.append(lambda other, low=low, high=high: low <= other <= high)  # type: ignore[misc]
        return lambda other: any(choice(other) for choice in choices) == is_wanted


def _place(holds: Callable[[str, int], bool]) -> Ends:
    return lambda text, at: 1 << at if holds(text, at) else 0


def _is_end(text: str, at: int) -> bool:
    return at == len(text) or text[at:] == "\n"


def _is_border(text: str, at: int) -> bool:
    before, after = at > 0 and KINDS["w"](text[at - 1]), at < len(text) and KINDS["w"](text[at])
    return before != after


def _either(choices: list[Ends], matcher: Matcher) -> Ends:
    def ends(text: str, at: int) -> int:
        matcher.spend(len(choices))
        found = 0
        for choice in choices:
            found |= choice(text, at)
        return found

    return ends


def _from_all(part: Ends, text: str, places: int, matcher: Matcher) -> int:
    """Where a part may end that begins at one of these places."""
    found = 0
    while places:
        lowest = places & -places
        places ^= lowest
        matcher.spend()
        found |= part(text, lowest.bit_length() - 1)
    return found


def _sequence(parts: list[Ends], matcher: Matcher) -> Ends:
    def ends(text: str, at: int) -> int:
        places = 1 << at
        for part in parts:
            places = _from_all(part, text, places, matcher)
            if not places:
                break
        return places

    return ends


def _repeated(part: Ends, low: int, high: int | None, matcher: Matcher) -> Ends:
    def ends(text: str, at: int) -> int:
        # More turns than there are characters change nothing: they would have to be turns without one.
        most = len(text) + 1
        places = 1 << at
        for _ in range(min(low, most)):
            places = _from_all(part, text, places, matcher)
        found = fresh = places
        for _ in range(most if high is None else min(high - low, most)):
            fresh = _from_all(part, text, fresh, matcher) & ~found
            if not fresh:
                break
            found |= fresh
        return found

    return ends
