"""Tokenizers: text to token ids and back, by words, characters or bytes, kept on disk as JSON.

A file looks like {"format": "fastllm-tokenizer", "version": 1, "type": "word", "tokens": ["<unk>", ...]};
the place of a token in the list is its id.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from fastllm.errors import FormatError
from fastllm.tokenizers.base import (
    ASSISTANT,
    END,
    FILE_FORMAT,
    FILE_VERSION,
    UNKNOWN,
    USER,
    TextStream,
    Tokenizer,
)
from fastllm.tokenizers.byte import ByteTokenizer
from fastllm.tokenizers.character import CharacterTokenizer
from fastllm.tokenizers.llama2c import Llama2cTokenizer
from fastllm.tokenizers.word import WordTokenizer

__all__ = [
    "ASSISTANT",
    "END",
    "TOKENIZERS",
    "UNKNOWN",
    "USER",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Llama2cTokenizer",
    "TextStream",
    "Tokenizer",
    "WordTokenizer",
    "load_tokenizer",
]

TOKENIZERS: dict[str, type[Tokenizer]] = {
    kind.name: kind for kind in (WordTokenizer, CharacterTokenizer, ByteTokenizer)
}
"""Kinds that can be built from texts."""

FILE_TYPES: dict[str, type[Tokenizer]] = {**TOKENIZERS, Llama2cTokenizer.name: Llama2cTokenizer}
"""Kinds that a file may hold."""


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Open a tokenizer written by `save`.

    Raises FileNotFoundError where there is no file, FormatError (a ValueError) for a file that is truncated,
    foreign or contradicts itself, OSError where it can't be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"a tokenizer must be an existing file; got {path}, which is missing; "
            "check the path, or write one with tokenizer.save(path)"
        ) from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # RecursionError: a foreign file of a million brackets
        raise FormatError(
            f"a tokenizer file must be whole JSON; got {path}, which fails with: {error}; "
            "save the tokenizer again or pass another file"
        ) from error
    try:
        return _tokenizer_of(document)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path} is no tokenizer that fastllm can open: {error}") from error


def _tokenizer_of(document: object) -> Tokenizer:
    """The tokenizer a JSON document describes; ValueError or TypeError where it describes none."""
    if not isinstance(document, dict) or document.get("format") != FILE_FORMAT:
        raise ValueError(f'"format" must be "{FILE_FORMAT}"; got {brief(document)}; pass another file')
    if document.get("version") != FILE_VERSION:
        raise ValueError(
            f'"version" must be {FILE_VERSION}; got {brief(document.get("version"))}; update fastllm'
        )
    kind = document.get("type")
    if not isinstance(kind, str) or kind not in FILE_TYPES:
        raise ValueError(f'"type" must be one of {", ".join(FILE_TYPES)}; got {brief(kind)}; update fastllm')
    fields: dict[str, Any] = {field: document.get(field) for field in FILE_TYPES[kind].fields}
    for field, value in fields.items():
        if not isinstance(value, list):
            raise TypeError(f'"{field}" must be a list; got {brief(value)}; save the tokenizer again')
    return FILE_TYPES[kind](**fields)
