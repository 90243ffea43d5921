"""The result of opening a model's files, whatever their format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import FormatError
from ..packed import KINDS, Packed
from ..small_files import brief

Weights = dict[str, NDArray[np.float32] | Packed]


@dataclass(frozen=True, slots=True, eq=False)
class OpenedModel:
    """A model of another project, opened.

    config              the configuration
    weights             our names -> Packed for a matrix, if possible a view of the mapped file; float32 array for a
                        norm, a bias and the position embedding
    source              "huggingface", "gguf" or "llama2c"
    path                its folder or file
    generation          generation options in its files: always "end_ids", the tokens that end a text, perhaps empty;
                        if given, the fields of GenerationConfig "temperature" (0: greedy), "top_k", "top_p", "min_p",
                        "typical_p", "repetition_penalty", "max_tokens", "stop", and for beam search "length_penalty"
                        and "early_stopping" (but not the number of beams, which the caller chooses)
    other_generation    other options, under their keys in transformers' generation_config.json: those that fastllm
                        lacks, and the ids of the padding and begin tokens
    tokenizer_metadata  the "tokenizer.*" keys of a GGUF file, arrays of numbers as NumPy arrays
    """

    config: ModelConfig
    weights: Weights
    source: str
    path: Path
    generation: dict[str, Any]
    other_generation: dict[str, Any] = field(default_factory=dict)
    tokenizer_metadata: dict[str, Any] = field(default_factory=dict)


KIND_OF_DTYPE = {"float32": "F32", "float16": "F16", "uint16": "BF16"}  # NumPy has no bfloat16: uint16 here


def packed(array: NDArray[Any]) -> Packed:
    """A float32, float16 or bfloat16 (as uint16) matrix as Packed: a view if it is C-contiguous."""
    array = np.ascontiguousarray(array)
    return Packed(array.view(np.uint8), KINDS[KIND_OF_DTYPE[array.dtype.name]])


def float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """A float32, float16 or bfloat16 (as uint16) array as float32: itself if it is float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _are_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)


# Generation option -> whether a value is valid, and the rule for messages.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: _is_number(value) and 0 <= value <= sys.float_info.max, "a number >= 0"),
    "top_k": (_is_whole, "a whole number >= 0, of at most 64 bits"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number > 0 and <= 1"),
    "typical_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number > 0 and <= 1"),
    "min_p": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda value: _is_number(value) and 1e-30 <= value <= 1e30, "a number from 1e-30 to 1e30"),
    "max_tokens": (lambda value: _is_whole(value) and value > 0, "a whole number > 0, of at most 64 bits"),
    "stop": (_are_texts, "a text or a list of them, none empty"),
    "length_penalty": (lambda value: _is_number(value) and -10 <= value <= 10, "a number from -10 to 10"),
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", 'true, false or "never"'),
}


def generation_facts(path: Path, vocab_size: int, end_ids: list[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """OpenedModel.generation from values in a file, None for those that it lacks.

    Raises FormatError, which names the file, for an id that is no integer and an option out of its range.
    """
    facts: dict[str, Any] = {"end_ids": token_ids(path, vocab_size, end_ids)}
    for name, value in options.items():
        if value is None:
            continue
        if name == "top_k" and _is_number(value) and value == -1:  # some files write "no limit" so
            value = 0
        is_good, rule = RANGES[name]
        if not is_good(value):
            raise FormatError(f"{path} must give {name} as {rule}; got {brief(value)}; fix it")
        facts[name] = tuple(value) if isinstance(value, list) else value
    return facts


def token_ids(path: Path, vocab_size: int, given: Iterable[Any]) -> tuple[int, ...]:
    """The distinct ids among values in a file; None and ids outside the vocabulary are ignored.

    Raises FormatError, which names the file, for an id that is no integer.
    """
    ids = [value for value in given if value is not None]
    for value in ids:
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(f"{path} must give the ids of tokens as whole numbers; got {brief(value)}; fix it")
    return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))


def named_ids(path: Path, vocab_size: int, given: Mapping[str, Any]) -> dict[str, int]:
    """As token_ids, for single ids by name; a name without a valid id is left out."""
    found = {name: token_ids(path, vocab_size, [value]) for name, value in given.items()}
    return {name: ids[0] for name, ids in found.items() if ids}
