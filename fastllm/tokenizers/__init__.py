"""Tokenizers, text to token ids and back: words, characters, bytes, byte-level BPE, and those that come with models.

Our files look like {"format": "fastllm-tokenizer", "version": 1, "type": "word", "tokens": ["<unk>", ...]}; a token's
index in the list is its id.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..small_files import brief, read_json
from .base import (
    ASSISTANT,
    END,
    FILE_FORMAT,
    FILE_NAME,
    FILE_VERSION,
    UNKNOWN,
    USER,
    TextStream,
    Tokenizer,
)
from .bpe import BPETokenizer
from .byte import ByteTokenizer
from .character import CharacterTokenizer
from .gguf import tokenizer_from_gguf, tokenizer_to_gguf
from .huggingface import MAX_TOKENIZER, HuggingFaceTokenizer, is_tokenizer_json
from .llama2c import Llama2cTokenizer
from .sentencepiece import SentencePieceTokenizer
from .word import WordTokenizer

__all__ = [
    "ASSISTANT",
    "END",
    "TOKENIZERS",
    "UNKNOWN",
    "USER",
    "BPETokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "HuggingFaceTokenizer",
    "Llama2cTokenizer",
    "SentencePieceTokenizer",
    "TextStream",
    "Tokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "tokenizer_from_gguf",
    "tokenizer_to_gguf",
]

LLAMA2C_NAME = "tokenizer.bin"

TOKENIZERS: dict[str, type[Tokenizer]] = {
    kind.name: kind for kind in (WordTokenizer, CharacterTokenizer, ByteTokenizer, BPETokenizer)
}
"""Kinds that can be built from texts."""

FILE_TYPES: dict[str, type[Tokenizer]] = {
    kind.name: kind
    for kind in (WordTokenizer, CharacterTokenizer, ByteTokenizer, Llama2cTokenizer, SentencePieceTokenizer)
}
"""Kinds that our file format can hold."""


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Open a tokenizer: a file written by `save`, Hugging Face's tokenizer.json, llama2.c's tokenizer.bin, a folder
    with one of these, or a run folder.

    With Hugging Face's tokenizer.json, tokenizer_config.json and other files beside it are read too (see
    tokenizers/huggingface.py).

    Raises FileNotFoundError where there is no file, FormatError (a ValueError) for a file that is truncated,
    inconsistent or of another format, FastllmError where a package is missing, OSError where it can't be read.
    """
    given, path = path, Path(path)
    if path.is_dir():
        file = next((path / name for name in (FILE_NAME, LLAMA2C_NAME) if (path / name).is_file()), None)
        if file is None and (path / "checkpoint" / FILE_NAME).is_file():  # of a run
            file = path / "checkpoint" / FILE_NAME
        if file is None:
            return HuggingFaceTokenizer.read(path)
        path = file
    if path.suffix == Path(LLAMA2C_NAME).suffix:
        return Llama2cTokenizer.read(path)
    try:
        document = read_json(path, "save the tokenizer again or pass another file", MAX_TOKENIZER)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"a tokenizer must be an existing file; got {given}, which is missing; "
            "check the path, or write one with tokenizer.save(path)"
        ) from None
    if is_tokenizer_json(document):
        return HuggingFaceTokenizer.read(path, document)
    try:
        return _tokenizer_of(document)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path} is no tokenizer that fastllm can open: {error}") from error


def _tokenizer_of(document: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a JSON document describes. Raises ValueError or TypeError for an invalid one."""
    if document.get("format") != FILE_FORMAT:
        raise ValueError(f'"format" must be "{FILE_FORMAT}"; got {brief(document)}; pass another file')
    if document.get("version") != FILE_VERSION:
        raise ValueError(f'"version" must be {FILE_VERSION}; got {brief(document.get("version"))}; update fastllm')
    kind = document.get("type")
    if not isinstance(kind, str) or kind not in FILE_TYPES:
        raise ValueError(f'"type" must be one of {", ".join(FILE_TYPES)}; got {brief(kind)}; update fastllm')
    return FILE_TYPES[kind].from_document(document)
