"""Characters as tokens, one per Unicode code point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .base import TextStream
from .vocabulary import SPECIAL_TOKENS, VocabularyTokenizer


class CharacterTokenizer(VocabularyTokenizer):
    """One token per character, white space included; decode(encode(text)) == text if all are known.

    >>> tokenizer = CharacterTokenizer.build(["hello"])
    >>> tokenizer.decode(tokenizer.encode("hole!"))
    'hole<unk>'
    """

    name = "character"
    unit = "character"

    def __init__(self, tokens: Sequence[str]) -> None:
        super().__init__(tokens)
        points = [ord(character) for character in self.tokens[len(SPECIAL_TOKENS) :]]
        # code point -> id; the last entry, "<unk>", also serves every code point beyond the table
        self._id_of_point = np.full(max(points, default=0) + 2, self.unknown_id, dtype=np.int32)
        self._id_of_point[points] = np.arange(len(SPECIAL_TOKENS), self.vocab_size)

    @staticmethod
    def _split(text: str) -> list[str]:
        return list(text)

    def _encode(self, text: str) -> NDArray[np.int32]:
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        return self._id_of_point.take(points, mode="clip")

    def stream(self, skip_special: bool = True) -> TextStream:
        return CharacterStream(self, skip_special)


class CharacterStream(TextStream):
    """Joins tokens as they are."""

    def _text(self, token_id: int) -> str:
        return self._tokens[token_id]
