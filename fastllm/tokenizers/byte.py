"""The bytes of UTF-8 as tokens: ids 0 .. 255 for any text in any language, then the control tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from reprlib import repr as brief
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .base import ASSISTANT, END, USER, TextStream, Tokenizer

BYTES = 256
TOKENS = (*(f"<0x{byte:02X}>" for byte in range(BYTES)), END, USER, ASSISTANT)


class ByteTokenizer(Tokenizer):
    """One token a byte; decode(encode(text)) == text for every text, and no token is unknown.

    Bytes that are no UTF-8 (a model may write any) come out as U+FFFD, the replacement character. A control
    token ends the character before it.

    >>> ByteTokenizer().encode("é").tolist()
    [195, 169]
    """

    name = "byte"

    def __init__(self, tokens: Sequence[str] = TOKENS) -> None:
        """There is one vocabulary only; ValueError for another, which a damaged file may hold."""
        if tuple(tokens) != TOKENS:
            raise ValueError(
                f"tokens must be the {BYTES} bytes and {END}, {USER}, {ASSISTANT}; "
                f"got {len(tokens)} others {brief(list(tokens))}; use ByteTokenizer()"
            )
        super().__init__(tokens)

    @classmethod
    def build(cls, texts: Iterable[str] = (), max_size: int | None = None, minimum_count: int = 1) -> Self:
        """The tokenizer, the same for all texts: neither texts nor minimum_count change it.

        Raises ValueError where max_size has no room for it.
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
    """Holds the bytes of a character back until it is whole."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        super().__init__(tokenizer, skip_special)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def _text(self, token_id: int) -> str:
        if token_id < BYTES:
            return self._decoder.decode(bytes((token_id,)))
        return self.flush() + self._tokens[token_id]

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
