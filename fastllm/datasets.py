"""From texts and records (records.py) to batches of packed rows.

There are two kinds. Examples are texts or dialogues, each a sequence of its own (JSON Lines or JSON). A token stream is
one long text cut into windows (plain text files). Both have `batch(step)`: the batch of a step follows from the seed
and the step alone, so a run can stop anywhere and go on.

A text is `tokens <end>`, preceded by the begin token if the tokenizer has one; every token but the first is a target.
A dialogue is laid out by the tokenizer's chat template or, without one, as
`<user> question <assistant> answer <end> <user> ...`; only answers and the tokens that end them are targets. Tokens
that stand for unknown words are never targets: a model would learn to say "<unk>".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from .atomic import replacing
from .config import whole_number
from .dialogue import answer_tokens, check_speakers, prompt_tokens, question_tokens, training_sequences
from .errors import DataError
from .inputs import checked_seed, int32_of
from .records import Record, checked_record
from .tokenizers.base import Tokenizer, pieces

NO_TARGET = -1
ROWS = 4096  # tokens in a batch for evaluation, which can be stopped after each batch
TRIES = 1000  # random batches to look for a target in


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences one after another: tokens, targets (N,) and starts (S+1,), all int32."""

    tokens: np.ndarray
    targets: np.ndarray
    starts: np.ndarray

    def __post_init__(self) -> None:
        for name in ("tokens", "targets", "starts"):  # lists are accepted, too
            if not isinstance(given := getattr(self, name), np.ndarray):
                object.__setattr__(self, name, np.asarray(given))

    @property
    def target_count(self) -> int:
        """Number of targets that count in the loss."""
        return int(np.count_nonzero(self.targets >= 0))

    def split(self, parts: int) -> Iterator[PackedBatch]:
        """Cut the batch into at most `parts` batches of whole sequences; parts without a target are left out."""
        sequences = len(self.starts) - 1
        parts = min(parts, sequences)
        if parts == 1 and self.starts[0] == 0 and self.starts[-1] == len(self.tokens):
            yield self
            return
        for part in range(parts):
            first, last = sequences * part // parts, sequences * (part + 1) // parts
            rows = slice(int(self.starts[first]), int(self.starts[last]))
            piece = PackedBatch(
                self.tokens[rows], self.targets[rows], self.starts[first : last + 1] - self.starts[first]
            )
            if piece.target_count:
                yield piece


class Dataset(Protocol):
    """What a Trainer trains on."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps that see all data once."""

    def batch(self, step: int) -> PackedBatch:
        """The batch of a step, counted from 0."""

    def in_order(self) -> Iterator[PackedBatch]:
        """All data once, for evaluation."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: tokens and targets (T,) int32, T >= 1; targets[t] is the token after t, or -1."""

    tokens: np.ndarray
    targets: np.ndarray


class Examples:
    """Texts or dialogues, shuffled anew each epoch.

    examples         at least one
    rows_per_update  examples in a batch; the last batch of an epoch may be smaller
    seed             for shuffling
    join             above 0: the examples of a batch are joined into sequences of at most this many tokens. A model
                     that has seen each dialogue only by itself can't answer after another one

    Raises DataError without an example, TypeError for what is no Example, ValueError for one whose targets are not as
    many as its tokens and for an option out of range.
    """

    def __init__(self, examples: Iterable[Example], rows_per_update: int = 16, seed: int = 0, join: int = 0) -> None:
        self.examples = list(examples)
        self.join = whole_number(join, "join")
        if not self.examples:
            raise DataError("a data set needs at least one text or dialogue of two tokens; got none; add some")
        for example in self.examples:
            if not isinstance(example, Example):
                raise TypeError(f"examples must be Examples; got {example!r:.60}; make_examples makes them of records")
            if len(example.tokens) != len(example.targets):
                raise ValueError(
                    f"an example must have a target for each token; got {len(example.tokens)} and "
                    f"{len(example.targets)}; -1 stands for none"
                )
        self.rows_per_update = whole_number(rows_per_update, "rows_per_update")
        if rows_per_update < 1:
            raise ValueError(f"rows_per_update must be 1 or more; got {rows_per_update}; 1 is the slowest, but works")
        if self.join < 0:
            raise ValueError(f"join must be 0 or more; got {join}; 0 keeps each example apart")
        self.seed = checked_seed(seed, "seed")
        self._order: tuple[int, list[int]] | None = None

    def __repr__(self) -> str:
        return f"<Examples: {len(self.examples):,}, {self.rows_per_update} in a batch>"

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that hold each example once."""
        return -(-len(self.examples) // self.rows_per_update)

    def batch(self, step: int) -> PackedBatch:
        """The examples whose turn it is at a step, counted from 0."""
        epoch, at = divmod(step, self.steps_per_epoch)
        known = self._order
        if known is None or known[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.examples)).tolist()
            known = self._order = epoch, order
        numbers = known[1][at * self.rows_per_update : (at + 1) * self.rows_per_update]
        examples = [self.examples[number] for number in numbers]
        return pack(join(examples, self.join) if self.join else examples)

    @property
    def token_count(self) -> int:
        """Number of tokens that `in_order` gives."""
        return sum(len(example.tokens) for example in self.examples)

    def in_order(self) -> Iterator[PackedBatch]:
        """All examples in their given order, not joined, in batches of at most ROWS tokens or of one longer example."""
        begin, tokens = 0, 0
        for at, example in enumerate(self.examples):
            if at > begin and tokens + len(example.tokens) > ROWS:
                yield pack(self.examples[begin:at])
                begin, tokens = at, 0
            tokens += len(example.tokens)
        yield pack(self.examples[begin:])


class OneBatch:
    """A data set whose batches are all the same: to time a step, or to see whether a model can memorise it."""

    steps_per_epoch = 1

    def __init__(self, batch: PackedBatch) -> None:
        self._batch = batch

    def batch(self, step: int) -> PackedBatch:
        """The batch, whatever the step."""
        return self._batch

    def in_order(self) -> Iterator[PackedBatch]:
        """The batch."""
        yield self._batch


class TokenStream:
    """One long text in windows, which are cut at different places and shuffled anew each epoch.

    tokens           (L,) ids of any integer type, with values that fit into int32; may be memory-mapped
    length           tokens in a window; anything above L - 1 counts as that
    rows_per_update  windows in a batch; the last batch of an epoch may be smaller
    seed             for cutting and shuffling
    missing          id that is never a target: the tokenizer's missing_id

    Raises TypeError for what is no row of whole numbers, DataError for fewer than two tokens and for a text without a
    target, ValueError for an option out of range.
    """

    def __init__(
        self, tokens: np.ndarray, length: int, rows_per_update: int = 16, seed: int = 0, missing: int | None = None
    ) -> None:
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise TypeError(
                f"tokens must be a row of whole numbers; got shape {tokens.shape}, {tokens.dtype}; encode the text"
            )
        if len(tokens) < 2:
            raise DataError(f"a text needs at least two tokens; got {len(tokens)}; give a longer text")
        if missing is not None and not (tokens[1:] != missing).any():
            raise DataError("a text must hold tokens of the vocabulary; got none; train a model on texts like this one")
        length = whole_number(length, "length")
        self.rows_per_update = whole_number(rows_per_update, "rows_per_update")
        if length < 1 or rows_per_update < 1:
            raise ValueError(
                f"length and rows_per_update must be 1 or more; got {length} and {rows_per_update}; raise them"
            )
        self.tokens = tokens
        self.length = min(length, len(tokens) - 1)
        self.seed = checked_seed(seed, "seed")
        self.missing = missing
        self._order: tuple[int, int, np.ndarray] | None = None

    def __repr__(self) -> str:
        windows = f"windows of {self.length}, {self.rows_per_update} in a batch"
        return f"<TokenStream: {len(self.tokens):,} tokens in {windows}>"

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that hold each window of an epoch once, and so each token with its target."""
        return -(-self._window_count // self.rows_per_update)

    @property
    def _window_count(self) -> int:
        """Windows in an epoch: one more than would cover the text, as the first begins before it."""
        count = -(-(len(self.tokens) - 1) // self.length)
        return count + (count > 1)

    def batch(self, step: int) -> PackedBatch:
        """The windows whose turn it is at a step, counted from 0.

        If none of them has a target, windows at random places instead.
        """
        epoch, at = divmod(step, self.steps_per_epoch)
        shift, order = self._order_of(epoch)
        turns = order[at * self.rows_per_update : (at + 1) * self.rows_per_update].astype(np.int64)
        last = len(self.tokens) - 1 - self.length
        batch = self._windows(np.clip(turns * self.length - shift, 0, last), self.length)
        if self.missing is None or batch.target_count:
            return batch
        rng = np.random.default_rng((self.seed, step))
        for _ in range(TRIES):
            batch = self._windows(rng.integers(0, last + 1, self.rows_per_update), self.length)
            if batch.target_count:
                return batch
        raise DataError(
            f"a text must mostly hold tokens of the vocabulary; got none in {TRIES} batches, taken at random; train a "
            "model on texts like this one"
        )

    def _order_of(self, epoch: int) -> tuple[int, np.ndarray]:
        """How many tokens before the text the first window of an epoch begins, and the order of the windows.

        The windows lie side by side; one that would begin before the text, or end after it, is moved to the edge.
        """
        known = self._order
        if known is None or known[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            shift, order = int(rng.integers(self.length)), np.arange(self._window_count, dtype=np.uint32)
            rng.shuffle(order)
            known = self._order = epoch, shift, order
        return known[1:]

    @property
    def token_count(self) -> int:
        """Number of tokens that `in_order` gives: the text's last one is only a target."""
        return len(self.tokens) - 1

    def in_order(self) -> Iterator[PackedBatch]:
        """The text in consecutive windows, each a sequence of its own; the last is as long as what is left."""
        whole = (len(self.tokens) - 1) // self.length * self.length
        first, together = np.arange(0, whole, self.length), max(1, ROWS // self.length)
        for at in range(0, len(first), together):
            yield self._windows(first[at : at + together], self.length)
        if rest := len(self.tokens) - 1 - whole:
            yield self._windows(np.array([whole]), rest)

    def _windows(self, first: np.ndarray, length: int) -> PackedBatch:
        rows = first[:, None] + np.arange(length + 1)
        windows = int32_of(self.tokens[rows], "tokens").reshape(rows.shape)
        starts = np.arange(0, (len(first) + 1) * length, length, dtype=np.int32)
        targets = _without(self.missing, windows[:, 1:].reshape(-1))
        return PackedBatch(windows[:, :-1].reshape(-1), targets, starts)


def _without(missing: int | None, targets: np.ndarray) -> np.ndarray:
    """The targets, with NO_TARGET in place of `missing`."""
    return targets if missing is None else np.where(targets == missing, np.int32(NO_TARGET), targets)


def count_missing(tokenizer: Tokenizer, pieces: Iterable[np.ndarray]) -> tuple[int, int]:
    """How many of the tokens in `pieces` stand for something outside the vocabulary, and how many there are in all."""
    if tokenizer.missing_id is None:
        return 0, 0
    counts = [(int((tokens == tokenizer.missing_id).sum()), len(tokens)) for tokens in pieces]
    return sum(missing for missing, _ in counts), sum(tokens for _, tokens in counts)


def join(examples: list[Example], length: int) -> list[Example]:
    """Join consecutive examples greedily into sequences of at most `length` tokens."""
    joined: list[Example] = []
    for example in examples:
        if joined and len(joined[-1].tokens) + 1 + len(example.tokens) <= length:
            before = joined.pop()
            # The last target, the token that ends the example, becomes an input. What follows it is no target: the
            # model can't know how the next example begins.
            end = np.asarray(before.targets[-1:])
            end = end[end >= 0]
            tokens = np.concatenate([before.tokens, end, example.tokens])
            targets = np.concatenate([before.targets, np.full_like(end, NO_TARGET), example.targets])
            example = Example(tokens, targets)
        joined.append(example)
    return joined


def pack(examples: list[Example]) -> PackedBatch:
    """Examples one after another."""
    starts = np.array([0, *accumulate(len(example.tokens) for example in examples)], np.int32)
    return PackedBatch(
        np.concatenate([example.tokens for example in examples]),
        np.concatenate([example.targets for example in examples]),
        starts,
    )


def make_examples(records: Iterable[Record], tokenizer: Tokenizer, context: int) -> list[Example]:
    """Encode records as examples of at most `context` tokens.

    A longer text is cut into several examples; a longer dialogue loses its first turns. Records of fewer than two
    tokens, and dialogues whose last turn doesn't fit, give none.

    Raises DataError for an invalid record, for a dialogue if the tokenizer can't mark who speaks, and for one that its
    chat template refuses; ValueError for a context below 1.
    """
    if context < 1:
        raise ValueError(f"context must be 1 or more; got {context}; give the model's")
    examples: list[Example] = []
    for number, record in enumerate(records, 1):
        try:
            examples += encode_record(checked_record(record), tokenizer, context)[0]
        except DataError as error:
            raise DataError(f"record {number}: {error}") from None
    return examples


def encode_file(
    path: Path, records: Iterable[Record], tokenizer: Tokenizer, context: Callable[[Record], int]
) -> Iterator[tuple[list[Example], int]]:
    """encode_record for each record of a file, with a context for each. Raises DataError naming the record."""
    for number, record in enumerate(records, 1):
        try:
            yield encode_record(record, tokenizer, context(record))
        except DataError as error:
            raise DataError(f"{path}, record {number}: {error}") from None


def encode_record(record: Record, tokenizer: Tokenizer, context: int) -> tuple[list[Example], int]:
    """The examples from a record, and how many of a dialogue's answers they leave out. Raises as make_examples."""
    if "text" in record:
        return list(_encode_text(record["text"], tokenizer, context)), 0
    encode = _encode_dialogue if tokenizer.chat_template is None else _encode_by_template
    return encode(record["messages"], tokenizer, context)


def _encode_text(text: str, tokenizer: Tokenizer, context: int) -> Iterator[Example]:
    tokens = np.append(tokenizer.encode(text), np.int32(tokenizer.end_id))
    if len(tokens) > 1 and tokenizer.begin_id is not None:
        tokens = np.append(np.int32(tokenizer.begin_id), tokens)
    for at in range(0, len(tokens) - 1, context):
        piece = tokens[at : at + context + 1]
        targets = _without(tokenizer.missing_id, piece[1:])
        if (targets >= 0).any():
            yield Example(piece[:-1], targets)


def _encode_dialogue(messages: list[dict[str, str]], tokenizer: Tokenizer, context: int) -> tuple[list[Example], int]:
    try:
        check_speakers(tokenizer)
    except DataError as error:
        raise DataError(f"dialogues can't be trained on: {error}") from None
    if messages[0]["role"] == "system":
        prompt_tokens(tokenizer, messages)  # raises an error that explains
    tokens: list[int] = []
    targets: list[int] = []
    left = len(messages) // 2
    for question, answer in zip(messages[-2::-2], messages[-1::-2], strict=True):  # the last turn first
        prompt = question_tokens(tokenizer, question["content"])
        reply = answer_tokens(tokenizer, answer["content"])
        if len(prompt) + len(reply) + len(tokens) > context + 1:
            break
        tokens = [*prompt, *reply, *tokens]
        targets = [*[NO_TARGET] * len(prompt), *reply, *targets]
        left -= 1
    return [_example(tokens, targets, tokenizer)] if tokens else [], left


def _encode_by_template(
    messages: list[dict[str, str]], tokenizer: Tokenizer, context: int
) -> tuple[list[Example], int]:
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = there = (len(messages) - len(system)) // 2

    def last(count: int) -> list[dict[str, str]]:
        return system + messages[len(messages) - 2 * count :]

    def fits(count: int) -> bool:
        ids = prompt_tokens(tokenizer, last(count), add_generation_prompt=False)
        behind = next((at for at, token in enumerate(reversed(ids)) if token in tokenizer.end_ids), 0)
        return len(ids) - behind <= context + 1

    if not fits(turns):
        low, high = 0, turns  # `low` turns fit, `high` turns don't
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        turns = low
    given = training_sequences(tokenizer, last(turns)) if turns else []
    fitting = [sequence for sequence in given if len(sequence[0]) <= context + 1]
    examples = [
        _example(tokens, [token if mine else NO_TARGET for token, mine in zip(tokens, said, strict=True)], tokenizer)
        for tokens, said in fitting
    ]
    answers = turns if len(given) == 1 == len(fitting) else len(fitting)  # one sequence with all, or one for each
    return examples, there - answers


def _example(tokens: list[int], targets: list[int], tokenizer: Tokenizer) -> Example:
    """targets: for each token, its own id if the model is to say it, else NO_TARGET."""
    # What follows token t is token t + 1; the last token has no successor.
    said = _without(tokenizer.missing_id, np.array(targets[1:], np.int32))
    return Example(np.array(tokens[:-1], np.int32), said)


def write_token_file(path: Path, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Encode a text into a .npy file of uint16 or, for large vocabularies, int32; the tokens (L,), memory-mapped."""
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    encoded = [tokenizer.encode(piece).astype(kind) for piece in pieces(text)]
    tokens = np.concatenate(encoded) if encoded else np.empty(0, kind)
    if len(tokens) < 2:
        raise DataError(f"a text needs at least two tokens; got {len(tokens)}; give a longer text")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        # Not np.save, which says how many numbers it wrote if the disk is full, and not why.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(tokens))
        file.write(tokens.data)
    return np.load(path, mmap_mode="r")
