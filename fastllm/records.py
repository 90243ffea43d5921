"""Data files: plain text, or records in JSON.

JSON Lines (.jsonl, .ndjson) has one record per line, JSON (.json) an array of them:

    {"text": "Mountains form when plates meet."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"instruction": "Translate into French.", "input": "mountain", "output": "montagne"}

An instruction with its output is a dialogue of one turn. Its question is the instruction, followed by an empty line and
the input if that isn't empty; the turns of a "history", [question, answer] pairs, come first. For models whose chat
template takes a system message, a dialogue may begin with one of the role "system", or its record may have a "system"
text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .dialogue import check_plain
from .errors import DataError
from .tokenizers.base import check_text

TEXT_SUFFIXES = (".txt", ".md", ".text")
LINES_SUFFIXES = (".jsonl", ".ndjson")
RECORD_SUFFIXES = (*LINES_SUFFIXES, ".json")

Record = dict[str, Any]


def holds_records(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds records, judged by its name; other files, and folders, hold plain text."""
    return Path(path).suffix.lower() in RECORD_SUFFIXES and not Path(path).is_dir()


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a JSON Lines file or a JSON array (.json), checked: {"text": ...} or {"messages": [...]}.

    Messages alternate between user and assistant and end with an answer. Instructions become messages, see above.
    Raises DataError naming the line or record, OSError for a file that can't be read.
    """
    is_array = Path(path).suffix.lower() == ".json"
    records = list((_read_array if is_array else _read_lines)(path, read_text(path)))
    if not records:
        rule = "an array of at least one JSON object" if is_array else "at least one JSON object a line"
        raise DataError(f"{path} must hold {rule}; got none; write one for each text or dialogue")
    return records


def _read_lines(path: str | os.PathLike[str], text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield checked_record(json.loads(line))
            except (ValueError, RecursionError) as error:
                if number == 1 and line.startswith("["):
                    said = "must be an object; got an array; call the file .json if it is one"
                elif isinstance(error, DataError):
                    said = str(error)
                else:
                    said = f"{no_json(error, line)}; correct the line or remove it"
                raise DataError(f"{path}, line {number}: {said}") from None


def _read_array(path: str | os.PathLike[str], text: str) -> Iterator[Record]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} must be JSON; got an error: {error}; correct it, or call it .jsonl if it has one object per line"
        ) from None
    if not isinstance(given, list):
        raise DataError(f"{path} must hold an array of records; got {type(given).__name__}; put [ ] around them")
    for number, record in enumerate(given, 1):
        try:
            yield checked_record(record)
        except DataError as error:
            raise DataError(f"{path}, record {number}: {error}") from None


def no_json(error: Exception, line: str) -> str:
    """What is wrong with a line that is not a JSON object."""
    why = f": {error!s:.100}"
    if isinstance(error, json.JSONDecodeError):
        why = f", wrong from column {error.colno} on ({error.msg})"
    return f"must be a JSON object; got {line.strip()!r:.60}{why}"


def checked_record(given: object) -> Record:
    """A copy of a valid record; an instruction becomes a dialogue. Raises DataError."""
    record: Record = dict(given) if isinstance(given, dict) else {}
    messages = record.get("messages")
    if not messages and {"instruction", "output"} <= record.keys():
        check_plain(record)
        return _valid({"messages": _dialogue_of(record)})
    if isinstance(record.get("text"), str):
        if not messages:
            return _valid(record)
        del record["text"]  # the same dialogue, laid out for another model
    if not isinstance(messages, list) or not messages:
        if "text" in record:
            raise DataError(f'a record\'s "text" must be a string; got {record["text"]!r:.60}; correct the record')
        keys = f"an object with {', '.join(map(str, given))}" if isinstance(given, dict) and given else f"{given!r}"
        raise DataError(
            'a record must be {"text": "..."}, {"messages": [...]} or {"instruction": "...", "output": "..."}; got '
            f"{keys:.80}; give it one of these shapes"
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
        raise DataError("history goes with an instruction; got it beside messages; put its turns into the messages")
    if role != "assistant":
        last = "a question last" if role == "user" else "a system message alone"
        raise DataError(f"a dialogue must end with the assistant's answer; got {last}; add what is missing")
    if said := _system_of(record):
        if begin and messages[0]["content"] not in ("", said[0]["content"]):
            raise DataError("a dialogue has one system text; got another in its messages; drop one of them")
        record["messages"] = [*said, *messages[begin:]]
    return _valid(record)


def _valid(record: Record) -> Record:
    """The record itself. Raises DataError for text that isn't valid Unicode (JSON can hold lone surrogates)."""
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
        raise DataError(f"history must be an array of [question, answer] pairs; got {turns!r:.80}; correct it")
    dialogue = _system_of(record)
    for said in [*turns, [question, output]]:
        for role, content in zip(("user", "assistant"), said, strict=True):
            if not isinstance(content, str):
                raise DataError(f"history must hold texts; got {content!r:.80}; write it in quotes")
            dialogue.append({"role": role, "content": content})
    return dialogue


def _system_of(record: Record) -> list[dict[str, str]]:
    """The message made from a record's "system" text; [] if that is missing or empty."""
    text = _value(record, "system")
    if text is None:
        return []
    if not isinstance(text, str):
        raise DataError(f"system must be a text; got {text!r:.80}; write it in quotes")
    return [{"role": "system", "content": text}]


def _value(record: Record, name: str) -> Any:
    """The value, or None if it is empty; tables exported to JSON write an empty array as the string "[]"."""
    value = record.get(name)
    return None if value in ("", [], "[]") else value


def read_text(path: str | os.PathLike[str], refuse_records: bool = False) -> str:
    """A UTF-8 text file, or all text files of a folder in the order of their names, separated by blank lines.

    refuse_records  whether a file that begins with a record is an error: a model would learn its braces and quotes

    Raises DataError for text that is not UTF-8 or a folder without text files, OSError for a file that can't be read.
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


def files_of(folder: Path, suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """The files in a folder and its subfolders, sorted by path, without hidden ones (".git").

    suffixes  only files with these; None: all
    """
    return sorted(
        path for path in folder.rglob("*")
        if (suffixes is None or path.suffix.lower() in suffixes) and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )  # fmt: skip


def _check_is_text(path: Path, text: str) -> None:
    begin = re.match(r"\s*(\[?)\s*(?=\{)", text)
    if begin is None:
        return
    try:
        checked_record(json.JSONDecoder().raw_decode(text, begin.end())[0])
    except (ValueError, RecursionError):
        return
    name = ".json" if begin[1] else ".jsonl"
    raise DataError(
        f"{path} must hold plain text, judging by its name; got JSON records; give them in a file called *{name}"
    )


def record_texts(records: Iterable[Record]) -> Iterator[str]:
    """Every text in records, to build a vocabulary from."""
    for record in records:
        if "text" in record:
            yield record["text"]
        else:
            yield from (message["content"] for message in record["messages"])
