"""The files that a job trains on: read once, and laid out for each phase that names them."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..datasets import Example, Examples, TokenStream, count_missing, encode_file, write_token_file
from ..errors import DataError
from ..records import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    Record,
    files_of,
    holds_records,
    read_records,
    read_text,
    record_texts,
)
from ..tokenizers import Tokenizer
from .config import PhaseConfig
from .run import TOKENS

Data = Examples | TokenStream
SHIPPED = "fastllm:"
VALIDATION_SHARE = 10  # a text without a validation file gives its last tenth
LOST_SPACE = re.compile(r"[^\S ]|  ")
LONGEST_NAME = 80  # bytes of a data file's name in that of its tokens


def resolve(path: str) -> Path:
    """A data file's path; "fastllm:en/facts.jsonl" is one that comes with the library."""
    if not path.startswith(SHIPPED):
        return Path(path)
    shipped = Path(str(files("fastllm"))) / "data" / path.removeprefix(SHIPPED)
    # In a checkout the data stands beside the package, not in it.
    return shipped if shipped.exists() else Path(__file__).parents[2] / "data" / path.removeprefix(SHIPPED)


@dataclass
class Reading:
    """What a file is read for: a phase, its tokenizer and model; and notes for the user on how that went.

    context  of the model, in tokens
    seed     of the phase's shuffling
    folder   of the run, where a text's tokens are kept
    notes    lines for the user: what is left out, unknown or not read
    """

    phase: PhaseConfig
    tokenizer: Tokenizer
    context: int
    seed: int
    folder: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = self.phase.sequence_length
        if given is not None and given > self.context:
            self.notes.append(f"sequence_length {given} is cut to the model's context of {self.context} tokens")

    @property
    def length(self) -> int:
        """Most tokens in a sequence."""
        return min(self.phase.sequence_length or self.context, self.context)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Source:
    """A data file as it was read: records, or one text. `checksum` is that of all it holds."""

    def __init__(self, path: Path, is_new: bool) -> None:
        """is_new: refuse what a new run should not train on; a run that has begun must go on with it."""
        self.path = path
        self._records: list[Record] | None = None
        self._encoded: np.ndarray | None = None
        self._text = ""
        if holds_records(path):
            self._records = read_records(path)
            self.checksum = zlib.crc32(json.dumps(self._records).encode())
        else:
            self._text = read_text(path, refuse_records=is_new)
            if not self._text.strip():
                raise DataError(f"a text must not be empty; got none in {path}; give a longer one")
            self.checksum = zlib.crc32(self._text.encode())

    def texts(self) -> Iterator[str]:
        """What a vocabulary is built from."""
        if self._records is None:
            yield self._text
        else:
            yield from record_texts(self._records)

    def datasets(self, reading: Reading) -> tuple[Data, Data | None]:
        """For training, and what is held back for validation if no file is named for that."""
        self._note_space(reading)
        if self._records is not None or reading.phase.validation is not None:
            return self.whole(reading), None
        tokens = self._tokens(reading)
        cut = len(tokens) - len(tokens) // VALIDATION_SHARE
        missing = reading.tokenizer.missing_id
        if len(tokens) - cut < 2 or (missing is not None and (tokens[cut + 1 :] == missing).all()):
            return self._stream(tokens, reading), None
        return self._stream(tokens[:cut], reading), self._stream(tokens[cut:], reading)

    def whole(self, reading: Reading) -> Data:
        """All of it as one data set."""
        if self._records is None:
            return self._stream(self._tokens(reading), reading)
        self._note_control(reading, [record["text"] for record in self._records if "text" in record])
        join = reading.length if reading.phase.join else 0
        dataset = Examples(self._examples(self._records, reading), reading.phase.rows_per_update, reading.seed, join)
        self._note_missing(reading, (example.tokens for example in dataset.examples))
        return dataset

    def _examples(self, records: list[Record], reading: Reading) -> list[Example]:
        """The examples that records give. Notes how many records, and earlier answers of dialogues, are left out."""
        examples: list[Example] = []
        lost = shortened = left = 0
        for made, left_here in encode_file(self.path, records, reading.tokenizer, lambda _: reading.length):
            examples += made
            lost += not made
            if made and left_here:
                shortened += 1
                left += left_here
        most = f"{'the context' if reading.length == reading.context else 'sequence_length ='} {reading.length}"
        if lost:
            note = (
                f"{lost} of {len(records)} records of {self.path} are left out: fewer than two tokens, or a last turn "
                f"of more than {most}"
            )
            if not examples:
                raise DataError(f"a data set needs at least one record that fits; {note}; add shorter ones")
            reading.notes.append(note)
        if left:
            reading.notes.append(
                f"{_number(left, 'earlier answer')} of {_number(shortened, 'dialogue')} of {self.path} left out: with "
                f"them a dialogue has more tokens than {most}"
            )
        return examples

    def _tokens(self, reading: Reading) -> np.ndarray:
        if self._encoded is None:  # once: several phases may read it, and their file stays mapped
            stem = self.path.stem.encode(errors="replace")[:LONGEST_NAME].decode(errors="ignore")
            name = f"{stem}-{zlib.crc32(os.fsencode(self.path)):08x}{TOKENS}"  # two may share a stem
            with self._named():
                self._encoded = write_token_file(reading.folder / name, self._text, reading.tokenizer)
            self._note_folder(reading)
            self._note_control(reading, [self._text])
            self._note_missing(reading, [self._encoded])
        return self._encoded

    def _stream(self, tokens: np.ndarray, reading: Reading) -> TokenStream:
        note = f"join does nothing with {self.path}: the windows of a text follow one another"
        if reading.phase.join and note not in reading.notes:
            reading.notes.append(note)
        rows = reading.phase.rows_per_update
        with self._named():
            return TokenStream(tokens, reading.length, rows, reading.seed, reading.tokenizer.missing_id)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A block whose errors of data name the file."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None

    def _note_folder(self, reading: Reading) -> None:
        if not self.path.is_dir():
            return
        endings = [path.suffix.lower() for path in files_of(self.path)]
        texts, records = (sum(map(endings.count, suffixes)) for suffixes in (TEXT_SUFFIXES, RECORD_SUFFIXES))
        note = f"{self.path}: {_number(texts, 'text file')}, {len(self._text):,} characters"
        if records:
            note += f"; {_number(records, 'file')} of JSON not read: name one to train on its records"
        if others := len(endings) - texts - records:
            note += f"; {_number(others, 'other file')} not read: only {', '.join(TEXT_SUFFIXES)} are"
        reading.notes.append(note)

    def _note_control(self, reading: Reading, texts: list[str]) -> None:
        """Note control tokens written out in texts, such as "<|im_start|>": they are read as plain text."""
        tokenizer = reading.tokenizer
        found = [token_id for text in texts for token_id in tokenizer.find_control(text)]
        if found:
            reading.notes.append(
                f"{_number(len(found), 'text')} of control tokens in {self.path}, such as "
                f"{tokenizer.tokens[found[0]]}, left as text: write dialogues as messages, and texts as records"
            )

    def _note_space(self, reading: Reading) -> None:
        """Note texts and answers whose white space the tokenizer loses, so that the model can't learn it."""
        if reading.tokenizer.keeps_space:
            return
        said = [self._text] if self._records is None else (
            text for record in self._records
            for text in ([record["text"]] if "text" in record else [m["content"] for m in record["messages"][-1::-2]])
        )  # fmt: skip
        if lost := sum(bool(LOST_SPACE.search(text)) for text in said):
            reading.notes.append(
                f"white space other than single spaces is not learnt of {_number(lost, 'text')} of {self.path}: words "
                "are put one space apart; --tokenizer bpe or character keeps it"
            )

    def _note_missing(self, reading: Reading, pieces: Iterable[np.ndarray]) -> None:
        """Note how many tokens are unknown. They are no targets.

        In earlier versions they were; the checksum is changed so that a run begun then can't go on with other targets.
        """
        missing, tokens = count_missing(reading.tokenizer, pieces)
        if missing:
            self.checksum = zlib.crc32(b"no targets", self.checksum)
            reading.notes.append(
                f"{missing} of {tokens} tokens of {self.path} ({missing / tokens:.1%}) are not in the vocabulary: the "
                "model sees <unk> there, and does not learn to say them"
            )
