"""What opening a model's files gives, whatever their format."""

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

    config              what it computes
    weights             our names -> Packed for a matrix, a view of the mapped file where it can be one; a float32
                        array for a norm, a bias and the table of positions
    source              "huggingface", "gguf" or "llama2c"
    path                its folder or file
    generation          what its files say about generating text, as far as they do: "end_ids", the tokens that end
                        a text, is always there, perhaps empty; and of GenerationConfig's fields
                        "temperature" (0: the most probable token), "top_k", "top_p", "min_p", "typical_p",
                        "repetition_penalty", "max_tokens", "stop", and for those who ask for beams
                        "length_penalty" and "early_stopping"; whether to search is theirs to say
    other_generation    what else they say about it, in the words of transformers' generation_config.json: what fastllm
                        doesn't do and the ids of tokens that stand for padding or begin a text
    metadata            of a GGUF file: what stands in its "general.*" keys
    tokenizer_metadata  of a GGUF file: what stands in its "tokenizer.*" keys, arrays of numbers as NumPy's
    """

    config: ModelConfig
    weights: Weights
    source: str
    path: Path
    generation: dict[str, Any]
    other_generation: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    tokenizer_metadata: dict[str, Any] = field(default_factory=dict)


KIND_OF_DTYPE = {"float32": "F32", "float16": "F16", "uint16": "BF16"}  # bfloat16, which NumPy lacks, is uint16 here


def packed(array: NDArray[Any]) -> Packed:
    """A matrix of float32, float16, or bfloat16 as uint16, as it is: a view where it is C-contiguous."""
    array = np.ascontiguousarray(array)
    return Packed(array.view(np.uint8), KINDS[KIND_OF_DTYPE[array.dtype.name]])


def float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """float32, float16, or bfloat16 as uint16, in float32: a view where it is that."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: _is_number(value) and 0 <= value <= sys.float_info.max, "a number >= 0"),
    "top_k": (_is_id, "a whole number >= 0"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number > 0 and <= 1"),
    "typical_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number > 0 and <= 1"),
    "min_p": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda value: _is_number(value) and 1e-30 <= value <= 1e30, "a number from 1e-30 to 1e30"),
    "max_tokens": (lambda value: _is_id(value) and value > 0, "a whole number > 0"),
    "stop": (_are_texts, "a text or a list of them, none empty"),
    "length_penalty": (lambda value: _is_number(value) and -10 <= value <= 10, "a number from -10 to 10"),
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", 'true, false or "never"'),
}


def generation_facts(path: Path, vocab_size: int, end_ids: list[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """OpenedModel.generation from what stands in a file.

    Raises FormatError, which names the file, for what is no id and an option out of its range.
    """
    facts: dict[str, Any] = {"end_ids": token_ids(path, vocab_size, end_ids)}
    for name, value in options.items():
        if value is None:
            continue
        is_good, rule = RANGES[name]
        if not is_good(value):
            raise FormatError(f"{path} must give {name} as {rule}; got {brief(value)}; mend it")
        facts[name] = tuple(value) if isinstance(value, list) else value
    return facts


def token_ids(path: Path, vocab_size: int, given: Iterable[Any]) -> tuple[int, ...]:
    """Ids that stand in a file, each once; None and those outside the vocabulary are passed over.

    Raises FormatError, which names the file, for what is no id.
    """
    ids = [value for value in given if value is not None]
    for value in ids:
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(f"{path} must give the ids of tokens as whole numbers; got {brief(value)}; mend it")
    return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))


def named_ids(path: Path, vocab_size: int, given: Mapping[str, Any]) -> dict[str, int]:
    """As token_ids, of one id each by its name."""
    found = {name: token_ids(path, vocab_size, [value]) for name, value in given.items()}
    return {name: ids[0] for name, ids in found.items() if ids}
