"""Bytes of UTF-8 as tokens: ids 0 .. 255 are bytes, 256 .. 258 control tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..small_files import brief
from .base import ASSISTANT, END, USER, TextStream, Tokenizer

BYTES = 256
TOKENS = (*(f"<0x{byte:02X}>" for byte in range(BYTES)), END, USER, ASSISTANT)


class ByteTokenizer(Tokenizer):
    """One token per byte; decode(encode(text)) == text for every text, and no text is unknown.

    Bytes that aren't valid UTF-8 (a model may generate any) decode to U+FFFD, the replacement character. A control
    token ends an incomplete character.

    >>> ByteTokenizer().encode("é").tolist()
    [195, 169]
    """

    name = "byte"

    def __init__(self, tokens: Sequence[str] | None = None) -> None:
        """
        tokens  as a file holds them; None: TOKENS, the only vocabulary

        Raises ValueError for other tokens.
        """
        if tokens is not None and tuple(tokens) != TOKENS:
            raise ValueError(
                f"tokens must be the {BYTES} bytes and {END}, {USER}, {ASSISTANT}; "
                f"got {len(tokens)} others {brief(list(tokens))}; use ByteTokenizer()"
            )
        super().__init__(TOKENS)

    @classmethod
    def build(cls, texts: Iterable[str] = (), max_size: int | None = None, minimum_count: int = 1) -> Self:
        """The tokenizer, which is the same whatever the texts and minimum_count.

        Raises ValueError for a max_size below its size, 259.
        """
        if max_size is not None and max_size < len(TOKENS):
            raise ValueError(
                f"max_size must be at least {len(TOKENS)} for bytes and control tokens; got {max_size}; "
                "raise it or leave it out"
            )
        return cls()

    def _encode(self, text: str) -> NDArray[np.int32]:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def stream(self, skip_special: bool = True) -> TextStream:
        return ByteStream(self, skip_special)


class ByteStream(TextStream):
    """Holds the bytes of a character back until it is complete."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        super().__init__(tokenizer, skip_special)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def _text(self, token_id: int) -> str:
        if token_id < BYTES:
            return self._decoder.decode(bytes((token_id,)))
        return self.flush() + self._tokens[token_id]

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
