"""Words and punctuation marks as tokens; decoding restores the spaces between them by rules for English.

Encoding splits at Unicode white space and around each ASCII punctuation mark, which is a token of its own:
"Don't go, Ann!" gives Don ' t go , Ann !. The white space itself is lost.

Decoding writes one space or none before a token, depending only on that token and those before it, so that text can be
shown while it is generated. The rules restore regular English exactly: words joined by apostrophes and hyphens, plural
possessives, straight double quotes, brackets, $5, 5%, 3.14, 1,000 and 10:30. They can't restore 'single quotes' and
dashes - such as these - inside a sentence, negative numbers, lists such as 100, 200, abbreviations such as e.g., or a
sentence that begins with a number just after a number. There only spaces differ: two words are never joined, so for
every text of known words encode(decode(encode(text))) == encode(text).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .base import TextStream
from .vocabulary import VocabularyTokenizer

ASCII_PUNCTUATION = r"!-/:-@\[-`{-~"
TOKEN = re.compile(rf"[{ASCII_PUNCTUATION}]|[^\s{ASCII_PUNCTUATION}]+")

NO_SPACE_BEFORE = frozenset(".,!?;:)]}%")
NO_SPACE_AFTER = frozenset("([{$#~")
INSIDE_WORDS = frozenset("'-/@_^\\")  # no space on either side...
APART = frozenset(".,!?;:&+=<>*|`")  # ...but a space between one of these and one of INSIDE_WORDS
# Thai, Lao, Tibetan; Burmese; Khmer; Japanese; Chinese
WITHOUT_SPACES = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
CONTRACTIONS = frozenset(("s", "t", "re", "ve", "ll", "d", "m"))


def has_spaces(texts: Iterable[str]) -> bool:
    """Whether at least half the letters are of scripts with spaces between words, which this tokenizer needs."""
    letters = without = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        without += len(WITHOUT_SPACES.findall(text))
    return 2 * without <= letters


class WordTokenizer(VocabularyTokenizer):
    """One token per word or ASCII punctuation mark; upper and lower case differ.

    >>> tokenizer = WordTokenizer.build(["The sun is a star.", "Isn't it?"])
    >>> tokenizer.decode(tokenizer.encode("Isn't the sun a star?"))
    "Isn't <unk> sun a star?"
    """

    name = "word"
    keeps_space = False
    unit = "word or ASCII punctuation mark"

    @staticmethod
    def _split(text: str) -> list[str]:
        return TOKEN.findall(text)

    def _encode(self, text: str) -> NDArray[np.int32]:
        unknown = self.unknown_id
        return np.array([self._ids.get(token, unknown) for token in self._split(text)], dtype=np.int32)

    def stream(self, skip_special: bool = True) -> TextStream:
        return WordStream(self, skip_special)


class WordStream(TextStream):
    """Joins tokens, with a space before each that needs one."""

    _last = ""  # the token written last
    _before = ""  # the token before that one
    _quoting = False  # inside straight double quotes

    def _text(self, token_id: int) -> str:
        token = self._tokens[token_id]
        spaced = self._spaced(token)
        self._quoting ^= token == '"'
        self._before, self._last = self._last, token
        return f" {token}" if spaced else token

    def _spaced(self, token: str) -> bool:
        """Whether to write a space before a token."""
        last = self._last
        if not last or last in NO_SPACE_AFTER or token in NO_SPACE_BEFORE:
            return False
        if token == '"':
            return not self._quoting
        if last == '"' and self._quoting:
            return False
        if token in INSIDE_WORDS:
            return last in APART
        if last == "'":
            # the dogs' tails, but the dog's tail and O'Brien
            return self._before.lower().endswith("s") and token.lower() not in CONTRACTIONS
        return last not in INSIDE_WORDS and not self._continues_number(token)

    def _continues_number(self, token: str) -> bool:
        """Whether a token continues a number: the 14 of 3.14, the 30 of 10:30, the 000 of 1,000."""
        whole = self._before
        if not (whole.isdecimal() and token.isdecimal()):
            return False
        return self._last in (".", ":") or (self._last == "," and len(whole) <= 3 and len(token) == 3)
