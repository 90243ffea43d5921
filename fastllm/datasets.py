"""From files to batches of packed rows.

Two kinds of data. Examples are texts or dialogues, each a sequence of its own (JSON Lines or JSON). A token stream is
one long text cut into windows (plain text files). Both answer `batch(step)`: what step number `step` trains
on follows from the seed and the step alone, so a run can stop anywhere and go on.

JSON Lines (.jsonl, .ndjson), an object a line, or JSON (.json), an array of them:

    {"text": "Mountains form when plates meet."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"instruction": "Translate into French.", "input": "mountain", "output": "montagne"}

An instruction with its output is a dialogue of one turn. Its question is the instruction, and where there is an input
that isn't empty, an empty line and the input after it; a "history" of [question, answer] pairs goes before. A dialogue
may begin with a message of the role "system", or its record have a "system" text, for models whose chat template takes
one.

A text is `tokens <end>`, behind the token that the model expects before a text if it does so, and every token but the
first is a target. A dialogue is laid out by the tokenizer's chat template, or without one it is
`<user> question <assistant> answer <end> <user> ...`; only answers and the tokens that end them are targets. What is
not in the vocabulary is never a target: a model would learn to say "<unk>".
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .atomic import replacing
from .dialogue import answer_tokens, check_plain, check_speakers, lessons, prompt_tokens, question_tokens
from .errors import DataError
from .inputs import int32_of
from .tokenizers.base import Tokenizer, check_text

NO_TARGET = -1
TEXT_SUFFIXES = (".txt", ".md", ".text")
LINES_SUFFIXES = (".jsonl", ".ndjson")
RECORD_SUFFIXES = (*LINES_SUFFIXES, ".json")
PIECE = 1 << 20  # characters encoded at a time
TRIES = 1000


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

    tokens           (L,) ids, any integer type that their values fit with int32; may be memory-mapped
    length           tokens in a window; cut to what there is
    rows_per_update  windows in a batch
    missing          id that is no target: the tokenizer's missing_id
    """

    def __init__(
        self, tokens: np.ndarray, length: int, rows_per_update: int = 16, seed: int = 0, missing: int | None = None
    ) -> None:
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise TypeError(
                f"tokens must be a row of whole numbers; got shape {tokens.shape}, {tokens.dtype}; encode the text"
            )
        if len(tokens) < 2:
            raise DataError(f"a text needs at least two tokens to train on; got {len(tokens)}; give a longer text")
        if missing is not None and not (tokens[1:] != missing).any():
            raise DataError("a text must hold tokens of the vocabulary; got none; train a model on texts like this one")
        if length < 1 or rows_per_update < 1:
            raise ValueError(
                f"length and rows_per_update must be 1 or more; got {length} and {rows_per_update}; raise them"
            )
        self.tokens = tokens
        self.length = min(length, len(tokens) - 1)
        self.rows_per_update = rows_per_update
        self.seed = seed
        self.missing = missing

    @property
    def steps_per_epoch(self) -> int:
        return max(1, (len(self.tokens) - 1) // (self.length * self.rows_per_update))

    def batch(self, step: int) -> PackedBatch:
        rng = np.random.default_rng((self.seed, step))
        for _ in range(TRIES):
            first = rng.integers(0, len(self.tokens) - self.length, self.rows_per_update)
            batch = self._windows(first, self.length)
            if self.missing is None or batch.target_count:
                return batch
        raise DataError(
            f"a text must mostly hold tokens of the vocabulary; got none in {TRIES} batches, taken at random; train a "
            "model on texts like this one"
        )

    def in_order(self) -> Iterator[PackedBatch]:
        whole = (len(self.tokens) - 1) // self.length * self.length
        first = np.arange(0, whole, self.length)
        for at in range(0, len(first), 64):
            yield self._windows(first[at : at + 64], self.length)
        if rest := len(self.tokens) - 1 - whole:
            yield self._windows(np.array([whole]), rest)

    def _windows(self, first: np.ndarray, length: int) -> PackedBatch:
        rows = first[:, None] + np.arange(length + 1)
        windows = int32_of(self.tokens[rows], "tokens").reshape(rows.shape)
        starts = np.arange(0, (len(first) + 1) * length, length, dtype=np.int32)
        targets = _without(self.missing, windows[:, 1:].reshape(-1))
        return PackedBatch(windows[:, :-1].reshape(-1), targets, starts)


def _without(missing: int | None, targets: np.ndarray) -> np.ndarray:
    """The targets, NO_TARGET where they are missing."""
    return targets if missing is None else np.where(targets == missing, np.int32(NO_TARGET), targets)


def count_missing(dataset: Dataset, tokenizer: Tokenizer) -> tuple[int, int]:
    """How many of a data set's tokens stand for what isn't in the vocabulary, and how many tokens there are."""
    if tokenizer.missing_id is None:
        return 0, 0
    counts = [(int((b.tokens == tokenizer.missing_id).sum()), len(b.tokens)) for b in dataset.in_order()]
    return sum(missing for missing, _ in counts), sum(tokens for _, tokens in counts)


def join(examples: list[Example], length: int) -> list[Example]:
    """Examples in their order, one behind another as long as the result has at most `length` tokens."""
    joined: list[Example] = []
    for example in examples:
        if joined and len(joined[-1].tokens) + 1 + len(example.tokens) <= length:
            before = joined.pop()
            # The last target is the token that ends it; what follows that is not for the model to guess.
            end = before.targets[-1:]
            end = end[end >= 0]
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


def holds_records(path: str | os.PathLike[str]) -> bool:
    """Whether a file is of records, by its name; others, and folders, are of plain text."""
    return Path(path).suffix.lower() in RECORD_SUFFIXES and not Path(path).is_dir()


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a JSON Lines file or of a JSON array (.json), each checked: {"text": ...} or {"messages": [...]}.

    Messages alternate and end in an answer. Instructions become messages, see above.
    Raises DataError naming the line or record, OSError for a file that can't be read.
    """
    read = _read_array if Path(path).suffix.lower() == ".json" else _read_lines
    records = list(read(path, read_text(path)))
    if not records:
        raise DataError(f"{path} must hold at least one JSON object a line; got none; see the data folder's README")
    return records


def _read_lines(path: str | os.PathLike[str], text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield _checked(json.loads(line))
            except (ValueError, RecursionError) as error:
                is_array = number == 1 and line.startswith("[")
                said = "must be an object; got an array; call the file .json if it is one" if is_array else error
                raise DataError(f"{path}, line {number}: {said}") from None


def _read_array(path: str | os.PathLike[str], text: str) -> Iterator[Record]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} must be JSON; got an error: {error}; mend it, or call it .jsonl if it has an object a line"
        ) from None
    if not isinstance(given, list):
        raise DataError(f"{path} must hold an array of records; got {type(given).__name__}; write [ ] around them")
    for number, record in enumerate(given, 1):
        try:
            yield _checked(record)
        except DataError as error:
            raise DataError(f"{path}, record {number}: {error}") from None


def _checked(given: object) -> Record:
    """A record, of an instruction its dialogue. Raises DataError."""
    record: Record = dict(given) if isinstance(given, dict) else {}
    messages = record.get("messages")
    if not messages and {"instruction", "output"} <= record.keys():
        check_plain(record)
        return _valid({"messages": _dialogue_of(record)})
    if isinstance(record.get("text"), str):
        if not messages:
            return _valid(record)
        del record["text"]  # the dialogue once more, laid out for another model
    if not isinstance(messages, list) or not messages:
        raise DataError(
            'a line must be {"text": "..."}, {"messages": [...]} or {"instruction": "...", "output": "..."}; got '
            "neither; see the data folder's README"
        )
    begin = isinstance(messages[0], dict) and messages[0].get("role") == "system"
    for turn, message in enumerate(messages):
        role = "system" if begin and turn == 0 else ("user", "assistant")[(turn - begin) % 2]
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise DataError(f'message {turn + 1} must be {{"role": "{role}", "content": "..."}}; got {message!r:.80}; '
                            "roles alternate and begin with user")  # fmt: skip
        check_plain(message)
    check_plain(record)
    if _value(record, "history"):
        raise DataError("history goes with an instruction; got it beside messages; put its turns into them")
    if role != "assistant":
        raise DataError("a dialogue must end with the assistant's answer; got a question last; add the answer")
    if said := _system_of(record):
        if begin and messages[0]["content"] not in ("", said[0]["content"]):
            raise DataError("a dialogue has one system text; got another in its messages; drop one of them")
        record["messages"] = [*said, *messages[begin:]]
    return _valid(record)


def _valid(record: Record) -> Record:
    """The record itself. Raises DataError for texts that are no Unicode, which JSON can hold."""
    for text in record_texts([record]):
        check_text(text)
    return record


def _dialogue_of(record: Record) -> list[dict[str, str]]:
    instruction, given, output = record["instruction"], record.get("input"), record["output"]
    for name, value in (("instruction", instruction), ("input", given or ""), ("output", output)):
        if not isinstance(value, str):
            raise DataError(f"{name} must be a text; got {value!r:.80}; write it in quotes")
    question = "\n\n".join(part for part in (instruction, given) if part)
    if not question:
        raise DataError("an instruction or its input must say something; got neither; leave the record out")
    turns = _value(record, "history") or []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise DataError(f"history must be an array of [question, answer] pairs; got {turns!r:.80}; mend it")
    dialogue = _system_of(record)
    for said in [*turns, [question, output]]:
        for role, content in zip(("user", "assistant"), said, strict=True):
            if not isinstance(content, str):
                raise DataError(f"history must hold texts; got {content!r:.80}; write it in quotes")
            dialogue.append({"role": role, "content": content})
    return dialogue


def _system_of(record: Record) -> list[dict[str, str]]:
    """The system message of a record that has its text beside the dialogue; none where it is missing or empty."""
    text = _value(record, "system")
    if text is None:
        return []
    if not isinstance(text, str):
        raise DataError(f"system must be a text; got {text!r:.80}; write it in quotes")
    return [{"role": "system", "content": text}]


def _value(record: Record, name: str) -> Any:
    """None for what says nothing: tables that become JSON have an empty array as a text."""
    value = record.get(name)
    return None if value in ("", [], "[]") else value


def read_text(path: str | os.PathLike[str], refuse_records: bool = False) -> str:
    """A UTF-8 text file, or all text files of a folder in the order of their names, a blank line between.

    refuse_records  whether a file that begins with a record is an error: its braces and quotes would be learnt

    Raises DataError for text that is not UTF-8 or a folder without text, OSError for what can't be read.
    """
    path = Path(path)
    if path.is_dir():
        files = files_of(path, TEXT_SUFFIXES)
        if not files:
            raise DataError(f"a folder must hold {', '.join(TEXT_SUFFIXES)} files; got none in {path}; name another")
        return "\n\n".join(read_text(file, refuse_records) for file in files)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there must be a text file or folder at {path}; got nothing; check the name") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be UTF-8 text; got byte 0x{error.object[error.start]:02x} at position {error.start}; "
            "convert it"
        ) from None
    if refuse_records:
        _check_is_text(path, text)
    return text


def files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files in a folder and those in it whose names end so, by their names; none that is hidden (".git")."""
    return sorted(
        path for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )  # fmt: skip


def _check_is_text(path: Path, text: str) -> None:
    begin = re.match(r"\s*(\[?)\s*(?=\{)", text)
    if begin is None:
        return
    try:
        _checked(json.JSONDecoder().raw_decode(text, begin.end())[0])
    except (ValueError, RecursionError):
        return
    name = ".json" if begin[1] else ".jsonl"
    raise DataError(f"{path} must hold text, by its name; got records, as of JSON; call it {name}")


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
    Raises DataError for dialogues where the tokenizer can't mark who speaks, or that its chat template refuses.
    """
    return [example for record in records for example in encode_record(record, tokenizer, context)[0]]


def encode_record(record: Record, tokenizer: Tokenizer, context: int) -> tuple[list[Example], int]:
    """The examples that a record gives, and how many of a dialogue's answers are in none. Raises as make_examples."""
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


def _encode_dialogue(
    messages: list[dict[str, str]], tokenizer: Tokenizer, context: int
) -> tuple[list[Example], int]:
    try:
        check_speakers(tokenizer)
    except DataError as error:
        raise DataError(f"dialogues can't be trained on: {error}") from None
    if messages[0]["role"] == "system":
        prompt_tokens(tokenizer, messages)  # says what is wrong
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
        low, high = 0, turns  # so many fit, so many don't
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        turns = low
    given = lessons(tokenizer, last(turns)) if turns else []
    fitting = [lesson for lesson in given if len(lesson[0]) <= context + 1]
    examples = [
        _example(tokens, [token if mine else NO_TARGET for token, mine in zip(tokens, said, strict=True)], tokenizer)
        for tokens, said in fitting
    ]
    answers = turns if len(given) == 1 == len(fitting) else len(fitting)  # one lesson for all, or one for each
    return examples, there - answers


def _example(tokens: list[int], targets: list[int], tokenizer: Tokenizer) -> Example:
    """targets: for each token, itself if the model is to say it."""
    # What follows token t is token t + 1; the last token has no successor.
    said = _without(tokenizer.missing_id, np.array(targets[1:], np.int32))
    return Example(np.array(tokens[:-1], np.int32), said)


def write_token_file(path: Path, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Encode a text into a .npy file of the smallest integers that do; the tokens (L,), memory-mapped."""
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    pieces = [tokenizer.encode(piece).astype(kind) for piece in _pieces(text)]
    tokens = np.concatenate(pieces) if pieces else np.empty(0, kind)
    if len(tokens) < 2:
        raise DataError(f"a text needs at least two tokens to train on; got {len(tokens)}; give a longer text")
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, tokens)
    except OSError as error:  # of a full disk, NumPy says how many numbers it wrote
        reason = error.strerror or f"{error}; is the disk full?"
        raise OSError(error.errno or errno.ENOSPC, f"{path} could not be written: {reason}") from None
    return np.load(path, mmap_mode="r")


def _pieces(text: str) -> Iterator[str]:
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
