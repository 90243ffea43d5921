"""Tokenizers whose vocabulary is counted in texts: four special tokens, then tokens by frequency."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

from ..config import whole_number
from ..errors import DataError
from ..small_files import brief
from .base import ASSISTANT, END, UNKNOWN, USER, Tokenizer, check_text

SPECIAL_TOKENS = (UNKNOWN, END, USER, ASSISTANT)


class VocabularyTokenizer(Tokenizer):
    """A tokenizer that splits text and looks the parts up; an unknown part is "<unk>"."""

    unit: ClassVar[str]
    """What a token is, for messages."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """
        tokens  the whole vocabulary, special tokens first

        Raises TypeError or ValueError for a token that this kind of tokenizer can't produce.
        """
        if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise ValueError(
                f"tokens must begin with {', '.join(SPECIAL_TOKENS)}; "
                f"got {brief(list(tokens[: len(SPECIAL_TOKENS)]))}; build the tokenizer again"
            )
        super().__init__(tokens)
        for position, token in enumerate(self.tokens[len(SPECIAL_TOKENS) :], start=len(SPECIAL_TOKENS)):
            if self._split(token) != [token]:
                raise ValueError(
                    f"each token must be one {self.unit}; got {brief(token)} at position {position}; "
                    "build the tokenizer again"
                )

    @staticmethod
    @abstractmethod
    def _split(text: str) -> list[str]:
        """The tokens of a text, known or not."""

    @classmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = 1) -> Self:
        """Count the tokens of texts; the most frequent come first, equally frequent ones as first seen.

        max_size       limit of vocab_size, four special tokens included; None: no limit
        minimum_count  tokens seen fewer times are left out

        Raises TypeError for anything but strings, DataError if no token is left, ValueError for a limit out of range.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be an iterable of str; got one str {brief(texts)}; pass [text]")
        minimum_count = whole_number(minimum_count, "minimum_count")
        if max_size is not None and (max_size := whole_number(max_size, "max_size")) <= len(SPECIAL_TOKENS):
            raise ValueError(
                f"max_size must be over {len(SPECIAL_TOKENS)}, the number of special tokens; got {max_size}; "
                "raise it or leave it out"
            )
        if minimum_count < 1:
            raise ValueError(f"minimum_count must be 1 or more; got {minimum_count}; leave it out")
        counts: Counter[str] = Counter()
        texts_read = 0
        for text in texts:
            check_text(text)
            counts.update(cls._split(text))
            texts_read += 1
        room = None if max_size is None else max_size - len(SPECIAL_TOKENS)
        kept = [token for token, count in counts.most_common(room) if count >= minimum_count]
        if not kept:
            raise DataError(
                f"texts must hold at least one text with a {cls.unit} seen {minimum_count} or more times; "
                f"got {texts_read} texts without; pass more text"
            )
        return cls([*SPECIAL_TOKENS, *kept])
