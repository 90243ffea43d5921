"""SentencePiece's byte-pair encoding with byte fallback, as Llama 1 and 2, Mistral and Gemma use it.

User-defined pieces are found first, in the text as it is, and never joined. In the text before, between and after them,
a space is put in front, and spaces become "▁". Then this text is split into characters, and among neighbours whose
union is a piece, the pair whose union has the highest score (of equal scores, the leftmost) is joined, until there is
none. A character that is no piece becomes the bytes of its UTF-8, tokens "<0x00>" ... "<0xFF>". llama.cpp does the
same, and so does transformers with the tokenizer.json of Llama 2.

Each token has a type, numbered as in SentencePiece and GGUF; text gives only normal and user-defined pieces, bytes and
"<unk>".
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..small_files import brief
from .base import TextStream, Tokenizer, distinct_ids
from .byte import ByteStream
from .huggingface_decoder import LAST_ID, SPACE, fallback_byte

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class SentencePieceTokenizer(Tokenizer):
    """Pieces of text with scores.

    Decoding removes the space that encoding puts before a text, so decode(encode(text)) == text, except that a "▁" in
    the text becomes a space, and that a space is added after a user-defined piece. An id beyond the tokens decodes to
    "", as embeddings often have more rows.

    types             NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE for each token
    scores            priority of joining a pair into the token: the highest first
    add_space_prefix  whether to put a space before a text
    """

    name = "sentencepiece"
    fields: ClassVar[tuple[str, ...]] = ("tokens", "scores", "types")
    options: ClassVar[tuple[str, ...]] = ("end_id", "begin_id", "unknown_id", "add_space_prefix", "chat_template",
                                          "chat_templates", "special_tokens", "end_ids")  # fmt: skip
    """What a file holds besides the fields."""
    space: ClassVar[str] = SPACE
    """The character that stands for a space in tokens."""
    joins_foreign: ClassVar[bool] = True
    """Whether a character that is no piece may be joined into one."""
    strips_start: ClassVar[bool] = True
    """Whether decoding removes the first space even without a begin token before it."""

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        *,
        end_id: int,
        begin_id: int | None = None,
        unknown_id: int | None = None,
        add_space_prefix: bool = True,
        chat_template: str | None = None,
        chat_templates: Mapping[str, str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        end_ids: Iterable[int] = (),
    ) -> None:
        """
        begin_id  id that the model expects before every text; None: nothing
        end_ids   ids that end an answer, besides end_id

        Raises TypeError or ValueError for an invalid vocabulary.
        """
        finite = sum(isinstance(score, (int, float)) and abs(score) <= sys.float_info.max for score in scores)
        if not len(tokens) == len(scores) == finite:
            raise ValueError(
                f"each of the {len(tokens)} tokens must have a finite score; got {len(scores)} scores, "
                f"{finite} of them finite numbers; pass an undamaged tokenizer"
            )
        known = sum(type(kind) is int and NORMAL <= kind <= BYTE for kind in types)
        if not len(tokens) == len(types) == known:
            raise ValueError(
                f"each of the {len(tokens)} tokens must have a type from {NORMAL} to {BYTE}; got {len(types)} types, "
                f"{known} of them valid; pass an undamaged tokenizer"
            )
        for name, token_id in (("end_id", end_id), ("begin_id", begin_id), ("unknown_id", unknown_id)):
            if token_id is not None and (type(token_id) is not int or not 0 <= token_id < len(tokens)):
                raise ValueError(
                    f"{name} must be in 0 .. {len(tokens) - 1}; got {token_id!r:.40}; pass an undamaged tokenizer"
                )
        self.end_token = tokens[end_id]
        named = [i for i, token in enumerate(tokens) if token != ""]
        ids = distinct_ids([tokens[i] for i in named])
        super().__init__(tokens, {token: named[place] for token, place in ids.items()})
        self.scores, self.types = list(scores), list(types)
        self.begin_id, self.unknown_id, self.add_space_prefix = begin_id, unknown_id, bool(add_space_prefix)
        self.chat_template, self.chat_templates = chat_template, dict(chat_templates or {})
        self.special_tokens = dict(special_tokens or {})
        self.control_ids = frozenset(
            {i for i, kind in enumerate(self.types) if kind == CONTROL and self.tokens[i]} | {end_id}
            | ({begin_id} if begin_id is not None else set())
        )  # fmt: skip
        self.end_ids = frozenset(i for i in (end_id, *end_ids) if i in self.control_ids)
        self._pieces = {
            token: i for token, i in self._ids.items()
            if self.types[i] in (NORMAL, USER_DEFINED) and i not in self.control_ids
        }  # fmt: skip
        self._byte_ids: list[int | None] = [None] * 256
        self._bytes: dict[int, bytes] = {}
        for i, kind in enumerate(self.types):
            if kind == BYTE:
                data = fallback_byte(self.tokens[i])
                if data is None:
                    raise ValueError(f"a byte must be named <0x00> to <0xFF>; got {brief(self.tokens[i])} at position "
                                     f"{i}; pass an undamaged tokenizer")  # fmt: skip
                self._byte_ids[data[0]] = i
                self._bytes[i] = data

    @classmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = 1) -> Self:
        """Not possible: the vocabulary comes with a model. Raises NotImplementedError."""
        raise NotImplementedError("tokenizers of SentencePiece come with their models; open the model's")

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """As Tokenizer.from_document; the constructor checks most of the fields."""
        options = {name: document[name] for name in cls.options if name in document}
        for name, kind, said in (("special_tokens", dict, "an object"), ("end_ids", list, "a list"),
                                 ("chat_template", (str, type(None)), "a text"),
                                 ("chat_templates", dict, "an object")):  # fmt: skip
            if name in options and not isinstance(options[name], kind):
                raise TypeError(f'"{name}" must be {said}; got {brief(options[name])}; save the tokenizer again')
        if not all(isinstance(text, str) for text in options.get("chat_templates", {}).values()):
            given = brief(options["chat_templates"])
            raise TypeError(f'"chat_templates" must be texts; got {given}; save the tokenizer again')
        return cls(**cls._lists_of(document), **options)

    def _document(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.options}
        if "end_ids" in options:
            options["end_ids"] = sorted(self.end_ids)
        return super()._document() | options

    def _encode(self, text: str) -> NDArray[np.int32]:
        ids: list[int] = []
        for part in _cut(text, self._user_defined):
            if isinstance(part, int):
                ids.append(part)
            else:
                part = f" {part}" if self.add_space_prefix else part
                ids += self._join(part.replace(" ", self.space))
        return np.array(ids, dtype=np.int32)

    def split_control(self, text: str) -> list[str | int]:
        """As Tokenizer.split_control, but a user-defined piece wins over a shorter control token within it."""
        parts: list[str | int] = []
        for part in _cut(text, self._marks):
            if isinstance(part, int):
                if part in self.control_ids or part == self.unknown_id:
                    parts.append(part)
                    continue
                part = self.tokens[part]
            before = parts.pop() if parts and isinstance(parts[-1], str) else ""
            parts.append(f"{before}{part}")
        return parts

    @cached_property
    def _control_texts(self) -> dict[str, int]:
        texts = super()._control_texts
        if self.unknown_id is not None and self.tokens[self.unknown_id]:
            texts[self.tokens[self.unknown_id]] = self.unknown_id  # as in llama.cpp
        return texts

    @cached_property
    def _marks(self) -> dict[str, int]:
        """Text -> id of the tokens that encode_template recognises, and of user-defined pieces."""
        return self._user_defined | self._control_texts

    @cached_property
    def _user_defined(self) -> dict[str, int]:
        return {token: i for token, i in self._pieces.items() if self.types[i] == USER_DEFINED}

    def _join(self, text: str) -> list[int]:
        """Join characters into pieces, highest score first.

        A heap holds the candidate pairs: O(n log n) time, while searching all pairs for each join would take O(n^2).
        """
        symbols = list(text)
        before = list(range(-1, len(symbols) - 1))
        after = list(range(1, len(symbols) + 1))
        candidates: list[tuple[float, int, int, str, str, int]] = []

        def consider(left: int, right: int) -> None:
            if left < 0 or right >= len(symbols):
                return  # an end of the text
            if not self.joins_foreign and not (symbols[left] in self._pieces and symbols[right] in self._pieces):
                return
            union = self._pieces.get(symbols[left] + symbols[right])
            if union is not None:
                heapq.heappush(candidates, (-self.scores[union], left, right, symbols[left], symbols[right], union))

        for left in range(len(symbols) - 1):
            consider(left, left + 1)
        while candidates:
            _, left, right, left_symbol, right_symbol, union = heapq.heappop(candidates)
            if (symbols[left], symbols[right]) != (left_symbol, right_symbol):
                continue  # one of the two has been joined since
            symbols[left], symbols[right] = self.tokens[union], ""
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        ids: list[int] = []
        for symbol in symbols:
            if symbol:
                piece = self._pieces.get(symbol)
                ids += self._fallback(symbol) if piece is None else [piece]
        return ids

    def _fallback(self, character: str) -> list[int]:
        """The ids of a character that is no piece: its bytes, or <unk> if the vocabulary lacks one of them.

        Raises DataError if it lacks <unk> too.
        """
        ids = [self._byte_ids[byte] for byte in character.encode()]
        if None not in ids:
            return ids  # type: ignore[return-value]
        if self.unknown_id is None:
            raise DataError(
                f"a text must be of characters that the tokenizer knows; got {character!r}, and there are neither byte "
                "tokens for it nor <unk>; leave it out"
            )
        return [self.unknown_id]

    def stream(self, skip_special: bool = True) -> TextStream:
        return SentencePieceStream(self, skip_special)


def _cut(text: str, pieces: Mapping[str, int]) -> list[str | int]:
    """Split a text at pieces, those of the most bytes first: their ids, and the text between them."""
    parts: list[str | int] = [text] if text else []
    for piece in sorted((piece for piece in pieces if piece in text), key=lambda piece: -len(piece.encode())):
        cut: list[str | int] = []
        for part in parts:
            if isinstance(part, int):
                cut.append(part)
                continue
            for place, between in enumerate(part.split(piece)):
                cut += [pieces[piece]] * (place > 0) + [between] * (between != "")
        parts = cut
    return parts


class SentencePieceStream(ByteStream):
    """Holds the bytes of a character back until it is complete; removes the space before a text."""

    def __init__(self, tokenizer: SentencePieceTokenizer, skip_special: bool) -> None:
        super().__init__(tokenizer, skip_special)
        self._count = LAST_ID + 1
        self._tokenizer = tokenizer
        self._begins = tokenizer.strips_start and tokenizer.add_space_prefix

    def push(self, token_id: int) -> str:
        text = super().push(token_id)
        self._begins = token_id == self._tokenizer.begin_id and self._tokenizer.add_space_prefix
        return text

    def _text(self, token_id: int) -> str:
        tokenizer = self._tokenizer
        if token_id in tokenizer._bytes:
            return self._decoder.decode(tokenizer._bytes[token_id])
        if token_id >= len(self._tokens):
            return self.flush()
        text = self._tokens[token_id]
        if token_id not in tokenizer.control_ids:
            text = text.replace(tokenizer.space, " ")
        return self.flush() + (text.removeprefix(" ") if self._begins else text)
