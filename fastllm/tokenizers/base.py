"""The base of all tokenizers: text to ids, and ids to text, one id at a time when streaming.

Special tokens mark the end of a text and the speakers. Programs insert their ids (`tokenizer.end_id`); no text that a
user types is ever encoded as one, not even "<end>".
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
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_json
from ..errors import DataError
from ..small_files import brief

UNKNOWN, END, USER, ASSISTANT = "<unk>", "<end>", "<user>", "<assistant>"

PIECE = 1 << 20  # characters processed at a time

FILE_FORMAT = "fastllm-tokenizer"
FILE_VERSION = 1
FILE_NAME = "tokenizer.json"


def check_text(text: object) -> None:
    """Raise TypeError unless text is a str, DataError if it holds a lone surrogate."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str; got {type(text).__name__}; pass one str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # "surrogateescape": a byte that Python couldn't decode
            raise DataError(
                f"text must be UTF-8; got byte 0x{code - 0xDC00:02x} at position {error.start}; convert it to UTF-8"
            ) from None
        surrogate = f"U+{code:04X}"
        raise DataError(
            f"text must be valid Unicode; got the lone surrogate {surrogate} at position {error.start}; "
            'clean it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from None


def pieces(text: str) -> Iterator[str]:
    """The text in pieces of PIECE characters or more, cut after a newline, or before a space in very long lines."""
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
    """Token -> id. Raises TypeError for a token that is no str, ValueError for a repeated one or a lone surrogate."""
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

    tokens          the token of each id, as text; "" for an id without a token
    begin_id        id that the model expects before every text; None: nothing
    end_id, user_id, assistant_id    ids of the tokens that end a text and begin a user's or an assistant's turn
    end_ids         ids that end an answer, end_id among them
    unknown_id      id of "<unk>", for text that is not in the vocabulary; None: there is no such token
    control_ids     ids that decode leaves out and encode never gives, "<unk>" excepted
    chat_template   Jinja source that formats a conversation as text; None: there is none
    chat_templates  name -> Jinja source if there are several; "default" is chat_template
    special_tokens  tokens by their names in chat templates: {"bos_token": "<s>", ...}
    keeps_space     whether decode restores white space as it was
    """

    name: ClassVar[str]
    """Name of this kind of tokenizer in files and on the command line."""
    keeps_space: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("tokens",)
    """Lists in the file, and arguments of the constructor."""
    end_token: str = END
    begin_id: int | None = None

    chat_template: str | None = None
    chat_templates: Mapping[str, str] = MappingProxyType({})

    def __init__(self, tokens: Sequence[str], ids: dict[str, int] | None = None) -> None:
        """
        tokens  the token of each id
        ids     token -> id; None: the tokens must be distinct

        Raises TypeError for a token that is no str, ValueError for one that is repeated or has a lone surrogate.
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
        """Make a tokenizer, special tokens included, whose vocabulary is learnt from texts.

        max_size         limit of vocab_size; None: no limit
        minimum_count    tokens seen fewer times are left out

        Raises TypeError for anything but strings, DataError for texts without a usable token, ValueError
        for a limit out of range.
        """

    @abstractmethod
    def stream(self, skip_special: bool = True) -> TextStream:
        """A decoder that takes one id at a time; skip_special as for decode."""

    @abstractmethod
    def _encode(self, text: str) -> NDArray[np.int32]:
        """Ids of a text that check_text has accepted."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids (N,) int32 of a text. "<unk>" is the only special token among them.

        Raises TypeError for anything but a str, DataError (a ValueError) for a lone surrogate.
        """
        check_text(text)
        return self._encode(text)

    def encode_template(self, text: str) -> NDArray[np.int32]:
        """Ids (N,) int32 of text from a chat template, in which the texts of control tokens become these tokens.

        Not for text of users; `dialogue.prompt_tokens` keeps the two apart. Raises as encode does.
        """
        check_text(text)
        return self.encode_parts(self.split_control(text))

    @property
    def missing_id(self) -> int | None:
        """unknown_id as a token not to train on; None where it also begins or ends texts, as in GPT-2."""
        return None if self.unknown_id in (self.begin_id, *self.end_ids) else self.unknown_id

    def find_control(self, text: str) -> Iterator[int]:
        """Ids of the control tokens whose texts occur in a text."""
        found = (self._control_texts[match.group()] for match in self._control_pattern.finditer(text))
        return (token_id for token_id in found if token_id in self.control_ids)

    def split_control(self, text: str) -> list[str | int]:
        """Split a text at the texts of control tokens: their ids, and the text between them."""
        parts: list[str | int] = []
        end = 0
        for match in self._control_pattern.finditer(text):
            parts += [text[end : match.start()], self._control_texts[match.group()]]
            end = match.end()
        return [part for part in (*parts, text[end:]) if part != ""]

    def encode_parts(self, parts: Iterable[str | int]) -> NDArray[np.int32]:
        """Ids (N,) int32 of a text in parts: an int is a control token, a str is text as for encode.

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
        """Text -> id of the tokens that encode_template recognises."""
        return {self.tokens[token_id]: token_id for token_id in sorted(self.control_ids) if self.tokens[token_id]}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        """Finds the leftmost, longest control text."""
        texts = sorted(self._control_texts, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids (N,), an array or any iterable of integers.

        skip_special    leave out the tokens in control_ids; "<unk>" is shown unless it is one of them

        Raises TypeError for an id that is no integer, ValueError for one out of range.
        """
        stream = self.stream(skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return len(self.tokens)

    @property
    def user_id(self) -> int:
        """Id of "<user>", before what a user says. Raises ValueError where the vocabulary lacks it."""
        return self.id_of(USER)

    @property
    def assistant_id(self) -> int:
        """Id of "<assistant>", before what the assistant says. Raises ValueError where the vocabulary lacks it."""
        return self.id_of(ASSISTANT)

    @property
    def bos_id(self) -> int | None:
        """begin_id, or else the id of the token called "bos_token", which the model need not expect; None: neither."""
        name = self.special_tokens.get("bos_token")
        return self._ids.get(name) if self.begin_id is None and name is not None else self.begin_id

    def id_of(self, token: str) -> int:
        """The id of a token, special ones included. Raises ValueError where the vocabulary lacks it."""
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
        """The content of the file, without format, version and type."""
        return {field: getattr(self, field) for field in self.fields}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The tokenizer that a file's JSON describes. Raises TypeError or ValueError for an invalid one."""
        return cls(**cls._lists_of(document))

    @classmethod
    def _lists_of(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a document. Raises TypeError for one that is no list."""
        fields: dict[str, Any] = {field: document.get(field) for field in cls.fields}
        for field, value in fields.items():
            if not isinstance(value, list):
                raise TypeError(f'"{field}" must be a list; got {brief(value)}; save the tokenizer again')
        return fields

    def save_into(self, folder: str | os.PathLike[str]) -> None:
        """Write all files of the tokenizer into a folder, for load_tokenizer. Raises OSError."""
        self.save(Path(folder) / FILE_NAME)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.vocab_size} tokens>"


class TextStream(ABC):
    """Decodes one id at a time: the results of all calls of push, then that of flush, joined, are the decoded text.

    What push returns depends only on the ids so far, so it can be shown at once.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokens = tokenizer.tokens
        self._count = len(self._tokens)
        self._hidden = tokenizer.control_ids if skip_special else frozenset()
        self._position = 0

    @abstractmethod
    def _text(self, token_id: int) -> str:
        """The text that an id adds."""

    def push(self, token_id: int) -> str:
        """The text that an id adds; "" while a character is incomplete.

        Raises TypeError unless the id is an integer, ValueError unless it is in 0 .. vocab_size - 1. (Tokenizers of
        published models accept larger ids, as their embeddings often have more rows than there are tokens.)
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
        """The text that a hidden token adds: what was held back, as it ends the character before it."""
        return self.flush()

    def flush(self) -> str:
        """The text still held back, at the end of the ids."""
        return ""
