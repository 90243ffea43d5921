"""Streaming decoding for tokenizer.json, one token at a time.

The file's "decoder" is a step or a sequence of steps, each from strings to strings:

    ByteLevel     each character of a token stands for a byte (GPT-2's table); all bytes together are the text
    Replace       replaces a string by another, in each token
    ByteFallback  "<0x0A>" is a byte; consecutive bytes are decoded as UTF-8
    Fuse          joins all strings so far
    Strip         removes up to `start` and `stop` copies of a character from the ends of each string
    Metaspace     "▁" becomes a space; in the first token it is removed, unless prepend_scheme is "never"

Here each step holds back only what isn't certain yet. The text is the same as with the package `tokenizers`, with one
exception: if consecutive bytes of ByteFallback are not valid UTF-8, that package writes a U+FFFD for each of them, even
for those that form valid characters. Here these characters have been written before the invalid byte arrives.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from .base import TextStream, Tokenizer

SPACE = "▁"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
KINDS = ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip")
LAST_ID = 2**31 - 1


class Step:
    """A decoder step; this one passes each string on unchanged."""

    def push(self, text: str) -> str:
        return text

    def flush(self) -> str:
        return ""


class Each(Step):
    """Changes each string by itself."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def push(self, text: str) -> str:
        return self._change(text)


class Bytes(Step):
    """Decodes bytes as UTF-8; a token that is no byte ends an incomplete character."""

    def __init__(self, bytes_of: Callable[[str], bytes | None]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, text: str) -> str:
        data = self._bytes_of(text)
        return self.flush() + text if data is None else self._decoder.decode(data)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FirstMetaspace(Step):
    """Replaces "▁" by a space, but removes it from the first token."""

    _first = True

    def push(self, text: str) -> str:
        space, self._first = "" if self._first else " ", False
        return text.replace(SPACE, space)


class StripStart(Step):
    """Removes up to `count` copies of a character from the beginning of the whole text."""

    def __init__(self, character: str, count: int) -> None:
        self._character, self._left = character, count

    def push(self, text: str) -> str:
        while self._left and text:
            if text[0] != self._character:
                self._left = 0
            else:
                self._left -= 1
                text = text[1:]
        return text


class Joined(Step):
    """Puts a space between tokens, as if there is no decoder."""

    _between = ""

    def push(self, text: str) -> str:
        text, self._between = self._between + text, " "
        return text


@cache
def byte_characters() -> dict[str, int]:
    """GPT-2's table: character -> the byte that it stands for. Printable characters of Latin-1 stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a token stands for; its UTF-8 if it has a character outside the table."""
    table = byte_characters()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode()


def fallback_byte(token: str) -> bytes | None:
    """b"\\x0a" for "<0x0A>", None for a token of another form."""
    match = BYTE_TOKEN.fullmatch(token)
    return bytes((int(match[1], 16),)) if match else None


def steps_of(decoder: Mapping[str, Any] | None) -> list[Step]:
    """New steps, for one text. Raises ValueError for a decoder that is damaged or can't be streamed."""
    if decoder is None:
        return [Joined()]
    steps: list[Step] = []
    fused = False
    for part in _parts(decoder):
        kind = part["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "ByteLevel":
            steps.append(Bytes(byte_level_bytes))
            fused = True
        elif kind == "ByteFallback":
            if fused:
                raise _unusable("ByteFallback after Fuse")
            steps.append(Bytes(fallback_byte))
        elif kind == "Replace":
            steps.append(Each(_replacing(part, fused)))
        elif kind == "Strip":
            steps.append(_strip(part, fused))
        elif part.get("replacement", SPACE) != SPACE or fused:
            raise _unusable(f"Metaspace with {part!r:.80}")
        elif part.get("prepend_scheme", "always") == "never" or part.get("add_prefix_space") is False:
            steps.append(Each(lambda text: text.replace(SPACE, " ")))
        else:
            steps.append(FirstMetaspace())
    return steps


def _parts(decoder: object) -> list[dict[str, Any]]:
    """The steps of a decoder, with nested sequences flattened."""
    parts: list[dict[str, Any]] = []
    waiting: list[object] = [decoder]  # a stack
    while waiting:
        part = waiting.pop()
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in KINDS:
            raise _unusable(repr(kind))
        if kind != "Sequence":
            parts.append(part)  # type: ignore[arg-type]
            continue
        inner = part.get("decoders")  # type: ignore[attr-defined]
        if not isinstance(inner, list):
            raise _unusable("a Sequence without decoders")
        waiting += reversed(inner)
    return parts


def _replacing(part: Mapping[str, Any], fused: bool) -> Callable[[str], str]:
    pattern, content = part.get("pattern"), part.get("content")
    string = pattern.get("String") if isinstance(pattern, dict) else None
    if not isinstance(string, str) or not isinstance(content, str) or not string or (fused and len(string) > 1):
        raise _unusable(f"Replace of {pattern!r:.60} by {content!r:.60}")
    return lambda text: text.replace(string, content)


def _strip(part: Mapping[str, Any], fused: bool) -> Step:
    character, start, stop = (part.get(name) for name in ("content", "start", "stop"))
    if not (isinstance(character, str) and len(character) == 1 and type(start) is int and type(stop) is int):
        raise _unusable(f"Strip with {part!r:.80}")
    if fused:
        if stop:
            raise _unusable("Strip at the end of the text")
        return StripStart(character, start)

    def strip(text: str) -> str:
        begins = min(start, len(text) - len(text.lstrip(character)))
        text = text[begins:]
        return text[: len(text) - min(stop, len(text) - len(text.rstrip(character)))]

    return Each(strip)


def _unusable(what: str) -> ValueError:
    return ValueError(f"a decoder must be made of {', '.join(KINDS)}; got {what}; use another tokenizer.json")


class HuggingFaceStream(TextStream):
    """Passes tokens through the decoder's steps. An id without a token adds nothing, as in `tokenizers`.

    changed  id -> text that goes through the steps in place of the token
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool, steps: list[Step], changed: Mapping[int, str]) -> None:
        super().__init__(tokenizer, skip_special)
        self._count = LAST_ID + 1
        self._steps = steps
        self._changed = changed

    def _hidden_text(self) -> str:
        return ""  # as in `tokenizers`, a character goes on after a hidden token

    def _text(self, token_id: int) -> str:
        token = self._changed.get(token_id) or (self._tokens[token_id] if token_id < len(self._tokens) else "")
        return self._through(token, 0) if token else ""

    def _through(self, text: str, first: int) -> str:
        for step in self._steps[first:]:
            if not text:
                break
            text = step.push(text)
        return text

    def flush(self) -> str:
        """The text still held back: that of each step, passed through the later ones."""
        return "".join(self._through(text, i + 1) for i, step in enumerate(self._steps) if (text := step.flush()))
