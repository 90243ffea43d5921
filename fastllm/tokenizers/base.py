"""What every tokenizer does: text to ids, ids back to text, one id at a time when it streams.

Special tokens mark the ends and the speakers of texts. A program puts their ids where they belong
(`tokenizer.end_id`); no text a user types ever turns into one, not even the text "<end>".
"""

from __future__ import annotations

import operator
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from reprlib import repr as brief
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_json
from ..errors import DataError

UNKNOWN, END, USER, ASSISTANT = "<unk>", "<end>", "<user>", "<assistant>"

PIECE = 1 << 20  # characters encoded at a time

FILE_FORMAT = "fastllm-tokenizer"
FILE_VERSION = 1
FILE_NAME = "tokenizer.json"


def check_text(text: object) -> None:
    """Raise TypeError unless text is a str, DataError where it holds half of a surrogate pair."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str; got {type(text).__name__}; pass one str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # as Python has what it read and couldn't decode
            raise DataError(
                f"text must be UTF-8; got byte 0x{code - 0xDC00:02x} at position {error.start}; convert it to UTF-8"
            ) from None
        surrogate = f"U+{code:04X}"
        raise DataError(
            f"text must be valid Unicode; got the lone surrogate {surrogate} at position {error.start}; "
            'clean it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from None


def pieces(text: str) -> Iterator[str]:
    """The text in pieces that end at line ends, so that no word is cut; in a line of many pieces, before a space."""
    at = 0
    while at < len(text):
        stop = text.find("\n", at + PIECE, at + 4 * PIECE) + 1
        if not stop:
            stop = text.find(" ", at + PIECE)
        if stop < 0:
            stop = len(text)
        yield text[at:stop]
        at = stop


def distinct_ids(tokens: Sequence[str]) -> dict[str, int]:
    """The id of each token. TypeError for a token that is no str, ValueError for one repeated or damaged."""
    ids: dict[str, int] = {}
    for position, token in enumerate(tokens):
        if not isinstance(token, str):
            raise TypeError(
                f"tokens must be str; got {type(token).__name__} at position {position}; build the tokenizer again"
            )
        check_text(token)
        first = ids.setdefault(token, position)
        if first != position:
            raise ValueError(
                f"tokens must be distinct; got {brief(token)} at positions {first} and {position}; "
                "build the tokenizer again"
            )
    return ids


class Tokenizer(ABC):
    """Maps text to token ids 0 .. vocab_size - 1 and back.

    tokens          the token of each id, as text; "" for an id that has none
    begin_id        what the model expects before every text, None for nothing
    end_id, user_id, assistant_id    ids of the control tokens
    end_ids         all that end an answer, end_id among them
    unknown_id      id of "<unk>", None where every text has its own ids
    control_ids     tokens that no text turns into and that decode leaves out
    chat_template   Jinja source that lays out a conversation, None without one
    template_names  of chat templates, where there are several; the one called "default" is chat_template
    special_tokens  what a template calls some tokens, {"bos_token": "<s>", ...}
    keeps_space     whether white space comes back as it was
    """

    name: ClassVar[str]
    """How files and command lines call this kind of tokenizer."""
    keeps_space: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("tokens",)
    """The lists that the file on disk holds, which are what the constructor takes."""
    end_token: str = END
    begin_id: int | None = None

    chat_template: str | None = None
    template_names: Sequence[str] = ()

    def __init__(self, tokens: Sequence[str], ids: dict[str, int] | None = None) -> None:
        """ids, where not all tokens have one of their own; without it they must be distinct.

        Raises TypeError for a token that is no str, ValueError for one that is repeated or damaged.
        """
        self.tokens = list(tokens)
        self._ids = distinct_ids(self.tokens) if ids is None else ids
        self.end_id = self.id_of(self.end_token)
        self.end_ids = frozenset((self.end_id,))
        self.unknown_id = self._ids.get(UNKNOWN)
        self.control_ids = frozenset(
            self._ids[token] for token in (self.end_token, USER, ASSISTANT) if token in self._ids
        )
        self.special_tokens: Mapping[str, str] = {}

    @classmethod
    @abstractmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = 1) -> Self:
        """Make a tokenizer for texts like these, special tokens included.

        max_size         the largest vocab_size allowed; None for no limit
        minimum_count    tokens seen fewer times are left out

        Raises TypeError for anything but strings, DataError for texts without a usable token, ValueError
        for a limit out of range.
        """

    @abstractmethod
    def stream(self, skip_special: bool = True) -> TextStream:
        """Start a text that grows with every id pushed."""

    @abstractmethod
    def _encode(self, text: str) -> NDArray[np.int32]:
        """Ids of a text that has been checked."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids (N,) int32 of the text, without any special token but "<unk>".

        Raises TypeError for anything but a str, DataError (a ValueError) for a lone surrogate.
        """
        check_text(text)
        return self._encode(text)

    def encode_template(self, text: str) -> NDArray[np.int32]:
        """Ids (N,) int32 of what a chat template wrote: here the texts of control tokens are those tokens.

        Never for text of a user's; `dialogue.prompt_tokens` keeps the two apart. Raises as encode does.
        """
        check_text(text)
        return self.encode_parts(self.split_control(text))

    @property
    def missing_id(self) -> int | None:
        """What stands for text that is not in the vocabulary, and is nothing to learn; GPT-2's "<unk>" ends a text."""
        return None if self.unknown_id in (self.begin_id, *self.end_ids) else self.unknown_id

    def find_control(self, text: str) -> Iterator[int]:
        """The ids of the control tokens whose texts a text holds."""
        found = (self._control_texts[match.group()] for match in self._control_pattern.finditer(text))
        return (token_id for token_id in found if token_id in self.control_ids)

    def split_control(self, text: str) -> list[str | int]:
        """The text in parts: the ids of control tokens whose texts it holds, and what stands between."""
        parts: list[str | int] = []
        end = 0
        for match in self._control_pattern.finditer(text):
            parts += [text[end : match.start()], self._control_texts[match.group()]]
            end = match.end()
        return [part for part in (*parts, text[end:]) if part != ""]

    def encode_parts(self, parts: Iterable[str | int]) -> NDArray[np.int32]:
        """Ids (N,) int32 of a text given in parts: an int is a control token, a str what it says, as in encode.

        Raises as encode does, ValueError for an int that is no control token.
        """
        ids: list[int] = []
        for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
            alike: list[Any] = [*group]
            ids += self.encode("".join(alike)).tolist() if is_text else map(self._control, alike)
        return np.array(ids, dtype=np.int32)

    def _control(self, token_id: int) -> int:
        if token_id not in self.control_ids and token_id != self.unknown_id:
            raise ValueError(f"an id in a text must be a control token's; got {token_id}; pass the others as text")
        return token_id

    @cached_property
    def _control_texts(self) -> dict[str, int]:
        """What encode_template recognises."""
        return {self.tokens[token_id]: token_id for token_id in sorted(self.control_ids) if self.tokens[token_id]}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        """Finds the leftmost, longest control text."""
        texts = sorted(self._control_texts, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids (N,), an array or any iterable of integers.

        skip_special    leave out end, user and assistant tokens; "<unk>" stands for a word and is shown

        Raises TypeError for an id that is no integer, ValueError for one out of range.
        """
        stream = self.stream(skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    @property
    def vocab_size(self) -> int:
        """How many ids there are, control tokens included."""
        return len(self.tokens)

    @property
    def user_id(self) -> int:
        """Marks what a user says; ValueError where the vocabulary has no such token and so can't chat."""
        return self.id_of(USER)

    @property
    def assistant_id(self) -> int:
        """Marks what the assistant says; ValueError as for user_id."""
        return self.id_of(ASSISTANT)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text by its name, whether or not the model expects it before each; None: none."""
        name = self.special_tokens.get("bos_token")
        return self._ids.get(name) if self.begin_id is None and name is not None else self.begin_id

    def id_of(self, token: str) -> int:
        """The id of a token, special ones included; ValueError where the vocabulary lacks it."""
        if token not in self._ids:
            raise ValueError(
                f"the token must be one of the vocabulary's {self.vocab_size}; got {brief(token)}; "
                "use encode() for text"
            )
        return self._ids[token]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer as JSON; the file is replaced whole or not at all. Raises OSError."""
        document = {"format": FILE_FORMAT, "version": FILE_VERSION, "type": self.name, **self._document()}
        write_json(path, document)

    def _document(self) -> dict[str, Any]:
        """What the file holds beside its format."""
        return {field: getattr(self, field) for field in self.fields}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The tokenizer that a file's JSON describes. Raises TypeError or ValueError where it describes none."""
        return cls(**cls._lists_of(document))

    @classmethod
    def _lists_of(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """The fields, which must be lists."""
        fields: dict[str, Any] = {field: document.get(field) for field in cls.fields}
        for field, value in fields.items():
            if not isinstance(value, list):
                raise TypeError(f'"{field}" must be a list; got {brief(value)}; save the tokenizer again')
        return fields

    def save_into(self, folder: str | os.PathLike[str]) -> None:
        """Write all that belongs to the tokenizer into a folder, for load_tokenizer. Raises OSError."""
        self.save(Path(folder) / FILE_NAME)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.vocab_size} tokens>"


class TextStream(ABC):
    """Text from ids, piece by piece: all that push returned, joined, and then flush, is the decoded text.

    A piece depends on its id and the ids before, never on what comes next, so it can be shown at once.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokens = tokenizer.tokens
        self._count = len(self._tokens)
        self._hidden = tokenizer.control_ids if skip_special else frozenset()
        self._position = 0

    @abstractmethod
    def _text(self, token_id: int) -> str:
        """What this id adds to the text."""

    def push(self, token_id: int) -> str:
        """What this id adds to the text, often "" in the middle of a character.

        Raises TypeError unless it is an integer, ValueError unless it is in 0 .. vocab_size - 1. (Tokenizers of
        real models take ids beyond: the tables of such models are often longer than the vocabulary.)
        """
        try:
            token_id = operator.index(token_id)
        except TypeError:
            raise TypeError(
                f"token ids must be integers; got {type(token_id).__name__} at position {self._position}; "
                "pass the ids of one text, as encode() gives them"
            ) from None
        if not 0 <= token_id < self._count:
            raise ValueError(
                f"token ids must be in 0 .. {self._count - 1}; "
                f"got {token_id} at position {self._position}; "
                "decode with the tokenizer that encoded the text"
            )
        self._position += 1
        return self._hidden_text() if token_id in self._hidden else self._text(token_id)

    def _hidden_text(self) -> str:
        """What a token that isn't shown adds: it ends the character before it."""
        return self.flush()

    def flush(self) -> str:
        """What is still held back when no more ids come."""
        return ""
