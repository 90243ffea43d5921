"""From files to batches of packed rows.

Two kinds of data. Examples are texts or dialogues, each a sequence of its own (JSON Lines). A token stream is
one long text cut into windows (plain text files). Both answer `batch(step)`: what step number `step` trains
on follows from the seed and the step alone, so a run can stop anywhere and go on.

JSON Lines, an object a line:

    {"text": "Mountains form when plates meet."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

A text is `tokens <end>`, and every token but the first is a target. A dialogue is
`<user> question <assistant> answer <end> <user> ...`, and only answers and their <end> are targets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .atomic import replacing
from .dialogue import answer_tokens, question_tokens
from .errors import DataError
from .tokenizers.base import Tokenizer

NO_TARGET = -1
TEXT_SUFFIXES = (".txt", ".md", ".text")
PIECE = 1 << 20  # characters encoded at a time


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences one after another: tokens, targets (N,) and starts (S+1,), all int32."""

    tokens: np.ndarray
    targets: np.ndarray
    starts: np.ndarray

    @property
    def target_count(self) -> int:
        """Targets that count in the loss."""
        return int((self.targets >= 0).sum())

    def split(self, parts: int) -> Iterator[PackedBatch]:
        """The batch in at most `parts` batches of whole sequences; those without a target are left out."""
        sequences = len(self.starts) - 1
        parts = min(parts, sequences)
        for part in range(parts):
            first, last = sequences * part // parts, sequences * (part + 1) // parts
            rows = slice(int(self.starts[first]), int(self.starts[last]))
            piece = PackedBatch(
                self.tokens[rows], self.targets[rows], self.starts[first : last + 1] - self.starts[first]
            )
            if parts == 1 or piece.target_count:
                yield piece


class Dataset(Protocol):
    """What a Trainer trains on."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see everything about once."""

    def batch(self, step: int) -> PackedBatch:
        """The batch of a step, counted from 0."""

    def in_order(self) -> Iterator[PackedBatch]:
        """Everything once, for evaluation."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: tokens and targets (T,) int32, T >= 2; targets[t] is the token after t, or -1."""

    tokens: np.ndarray
    targets: np.ndarray


class Examples:
    """Texts or dialogues, shuffled anew each epoch.

    examples         at least one
    rows_per_update  examples in a batch; the last batch of an epoch may be smaller
    seed             of the shuffling
    join             above 0: examples of a batch follow one another in sequences of at most so many tokens. A
                     model that has seen each dialogue only alone can't answer after another one
    """

    def __init__(
        self, examples: Iterable[Example], rows_per_update: int = 16, seed: int = 0, join: int = 0
    ) -> None:
        self.examples = list(examples)
        self.join = join
        if not self.examples:
            raise DataError("a data set needs at least one text or dialogue of two tokens; got none; add some")
        if rows_per_update < 1:
            raise ValueError(f"rows_per_update must be 1 or more; got {rows_per_update}; 1 is the slowest, but works")
        self.rows_per_update = rows_per_update
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.rows_per_update)

    def batch(self, step: int) -> PackedBatch:
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.examples))
        numbers = self._order[1][at * self.rows_per_update : (at + 1) * self.rows_per_update]
        return pack(join([self.examples[number] for number in numbers], self.join))

    def in_order(self) -> Iterator[PackedBatch]:
        for at in range(0, len(self.examples), 64):
            yield pack(self.examples[at : at + 64])


class OneBatch:
    """A data set whose every batch is the same: to time a step, or to see whether a model can learn by heart."""

    steps_per_epoch = 1

    def __init__(self, batch: PackedBatch) -> None:
        self._batch = batch

    def batch(self, step: int) -> PackedBatch:
        return self._batch

    def in_order(self) -> Iterator[PackedBatch]:
        yield self._batch


class TokenStream:
    """One long text, in windows at random places.

    tokens           (L,) ids, any integer type; may be memory-mapped
    length           tokens in a window; cut to what there is
    rows_per_update  windows in a batch
    """

    def __init__(self, tokens: np.ndarray, length: int, rows_per_update: int = 16, seed: int = 0) -> None:
        if len(tokens) < 2:
            raise DataError(f"a text needs at least two tokens to train on; got {len(tokens)}; give a longer text")
        if length < 1 or rows_per_update < 1:
            raise ValueError(
                f"length and rows_per_update must be 1 or more; got {length} and {rows_per_update}; raise them"
            )
        self.tokens = tokens
        self.length = min(length, len(tokens) - 1)
        self.rows_per_update = rows_per_update
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        return max(1, (len(self.tokens) - 1) // (self.length * self.rows_per_update))

    def batch(self, step: int) -> PackedBatch:
        rng = np.random.default_rng((self.seed, step))
        return self._windows(rng.integers(0, len(self.tokens) - self.length, self.rows_per_update), self.length)

    def in_order(self) -> Iterator[PackedBatch]:
        whole = (len(self.tokens) - 1) // self.length * self.length
        first = np.arange(0, whole, self.length)
        for at in range(0, len(first), 64):
            yield self._windows(first[at : at + 64], self.length)
        if rest := len(self.tokens) - 1 - whole:
            yield self._windows(np.array([whole]), rest)

    def _windows(self, first: np.ndarray, length: int) -> PackedBatch:
        rows = first[:, None] + np.arange(length + 1)
        windows = np.asarray(self.tokens[rows], np.int32)
        starts = np.arange(0, (len(first) + 1) * length, length, dtype=np.int32)
        return PackedBatch(windows[:, :-1].reshape(-1), windows[:, 1:].reshape(-1), starts)


def join(examples: list[Example], length: int) -> list[Example]:
    """Examples in their order, one behind another as long as the result has at most `length` tokens."""
    joined: list[Example] = []
    for example in examples:
        if joined and len(joined[-1].tokens) + 1 + len(example.tokens) <= length:
            before = joined.pop()
            # The last target is the token that ends it; what follows that is not for the model to guess.
            end = before.targets[-1:]
            tokens = np.concatenate([before.tokens, end, example.tokens])
            targets = np.concatenate([before.targets, np.full_like(end, NO_TARGET), example.targets])
            example = Example(tokens, targets)
        joined.append(example)
    return joined


def pack(examples: list[Example]) -> PackedBatch:
    """Examples one after another."""
    starts = np.zeros(len(examples) + 1, np.int32)
    np.cumsum([len(example.tokens) for example in examples], out=starts[1:])
    return PackedBatch(
        np.concatenate([example.tokens for example in examples]),
        np.concatenate([example.targets for example in examples]),
        starts,
    )


Record = dict[str, Any]


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """The lines of a JSON Lines file, each checked: a text, or messages that alternate and end in an answer.

    Raises DataError naming the line, OSError for a file that can't be read.
    """
    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                records.append(_check_record(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: {error}") from None
    if not records:
        raise DataError(f"{path} must hold at least one JSON object a line; got none; see the data folder's README")
    return records


def _check_record(record: object) -> Record:
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return record
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DataError(
            'a line must be {"text": "..."} or {"messages": [...]}; got neither; see the data folder\'s README'
        )
    for turn, message in enumerate(messages):
        role = ("user", "assistant")[turn % 2]
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise DataError(f'message {turn + 1} must be {{"role": "{role}", "content": "..."}}; got {message!r:.80}; '
                            "roles alternate and begin with user")  # fmt: skip
    if len(messages) % 2:
        raise DataError("a dialogue must end with the assistant's answer; got a question last; add the answer")
    return record  # type: ignore[return-value]


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text file, or all text files of a folder in the order of their names, a blank line between.

    Raises DataError for text that is not UTF-8 or a folder without text, OSError for what can't be read.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file())
        if not files:
            raise DataError(f"a folder must hold {', '.join(TEXT_SUFFIXES)} files; got none in {path}; name another")
        return "\n\n".join(read_text(file) for file in files)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there must be a text file or folder at {path}; got nothing; check the name") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be UTF-8 text; got byte 0x{error.object[error.start]:02x} at position {error.start}; "
            "convert it"
        ) from None


def record_texts(records: Iterable[Record]) -> Iterator[str]:
    """Every text in records, to build a vocabulary from."""
    for record in records:
        if "text" in record:
            yield record["text"]
        else:
            yield from (message["content"] for message in record["messages"])


def make_examples(records: Iterable[Record], tokenizer: Tokenizer, context: int) -> list[Example]:
    """Encode records. A longer text than the context is cut into several; of a longer dialogue the first turns go.

    Records of fewer than two tokens, and turns that don't fit at all, give nothing.
    """
    examples = []
    for record in records:
        if "text" in record:
            tokens = np.append(tokenizer.encode(record["text"]), np.int32(tokenizer.end_id))
            for at in range(0, len(tokens) - 1, context):
                piece = tokens[at : at + context + 1]
                examples.append(Example(piece[:-1], piece[1:]))
        elif (example := _encode_dialogue(record["messages"], tokenizer, context)) is not None:
            examples.append(example)
    return examples


def _encode_dialogue(messages: list[dict[str, str]], tokenizer: Tokenizer, context: int) -> Example | None:
    tokens: list[int] = []
    targets: list[int] = []
    for question, answer in zip(messages[-2::-2], messages[-1::-2], strict=True):  # the last turn first
        prompt = question_tokens(tokenizer, question["content"])
        reply = answer_tokens(tokenizer, answer["content"])
        if len(prompt) + len(reply) + len(tokens) > context + 1:
            break
        tokens = [*prompt, *reply, *tokens]
        targets = [*[NO_TARGET] * len(prompt), *reply, *targets]
    if not tokens:
        return None
    # What follows token t is token t + 1; the last token has no successor.
    return Example(np.array(tokens[:-1], np.int32), np.array(targets[1:], np.int32))


def write_token_file(path: Path, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Encode a text into a .npy file of the smallest integers that do; the tokens (L,), memory-mapped."""
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    pieces = [tokenizer.encode(piece).astype(kind) for piece in _pieces(text)]
    tokens = np.concatenate(pieces) if pieces else np.empty(0, kind)
    if len(tokens) < 2:
        raise DataError(f"a text needs at least two tokens to train on; got {len(tokens)}; give a longer text")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, tokens)
    return np.load(path, mmap_mode="r")


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end at line ends, so that no word is cut."""
    at = 0
    while at < len(text):
        stop = text.find("\n", at + PIECE)
        stop = len(text) if stop < 0 else stop + 1
        yield text[at:stop]
        at = stop
