"""Hugging Face folders, written so that transformers opens them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import real_path
from ..config import ModelConfig
from ..errors import FormatError
from ..packed import Packed
from ..parameters import shapes_of
from ..quantize import dequantize
from .huggingface import MODULES
from .huggingface_config import config_to_huggingface, model_type
from .huggingface_folder import CONFIG, GENERATION, OPTIONS, WEIGHTS
from .model_folder import holds_config, is_free, replacing_folder
from .modules import Tensor, check, layout_of
from .rows import Progress, pieces, row_order
from .safetensors_file import TensorToWrite, write_safetensors

KINDS_OF_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_huggingface(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    weights: Mapping[str, NDArray[Any] | Packed],
    *,
    dtype: str = "float32",
    generation: Mapping[str, Any] | None = None,
    other_generation: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a folder that transformers opens: config.json, generation_config.json and model.safetensors.

    weights     our names -> array or Packed, as in Model.parameters or OpenedModel.weights
    dtype       of all tensors in the file: "float32", "float16" or "bfloat16"
    generation, other_generation  as in OpenedModel
    files       further files for the folder, such as tokenizer.json: name -> content
    replace     replace a model that is in the folder; files there that don't belong to it are kept
    progress    called with the bytes of tensors written so far and in total

    A new folder is written beside the target and then renamed: the folder is whole or not there. Matrices are converted
    in pieces, those of GPT-2, which are transposed, one at a time.

    Raises FormatError for a model whose architecture Hugging Face lacks, weights of another model and numbers that
    dtype can't hold, ValueError for an unknown dtype and for names in `files` that are taken or contain a folder,
    FileExistsError for a file at the folder's path or a folder with other content, OSError where it can't be written.
    """
    if dtype not in KINDS_OF_DTYPE:
        raise ValueError(f"dtype must be one of {', '.join(KINDS_OF_DTYPE)}; got {dtype!r}; choose one of them")
    target, replaces = real_path(folder), holds_config if replace else _never
    if not is_free(target, replaces):
        what = "a new or an empty folder, or a model's" if replace else "a new or an empty folder"
        found = "one with other files in it" if target.is_dir() else "a file"
        raise FileExistsError(f"{folder} must be {what}; got {found}; choose another")
    fields, facts = config_files(config, dtype, generation or {}, other_generation or {})
    contents = {CONFIG: _json(fields), GENERATION: _json(facts)}
    for name in files or {}:
        if name in (*contents, WEIGHTS) or Path(name).name != name:
            raise ValueError(f"files must have names of their own in the folder; got {name!r}; choose another name")
    contents |= files or {}
    layout = _tensors(config, weights, KINDS_OF_DTYPE[dtype])
    with replacing_folder(target, replaces) as new:
        write_safetensors(new / WEIGHTS, layout, progress)
        for name, content in contents.items():
            (new / name).write_bytes(content)


def _never(folder: Path) -> bool:
    return False


def _tensors(config: ModelConfig, weights: Mapping[str, NDArray[Any] | Packed], kind: str) -> list[TensorToWrite]:
    """The tensors of model.safetensors; their bytes are made when they are written."""
    layout = layout_of(MODULES[model_type(config)], config)
    check(weights, shapes_of(config))

    def pieces_of(tensor: Tensor) -> Iterator[NDArray[np.uint8]]:
        try:
            if tensor.transposed and len(tensor.shape) == 2:
                parts = [weights[name] for name in tensor.ours]
                whole = np.concatenate([dequantize(part) if isinstance(part, Packed) else part for part in parts])
                yield from pieces(whole.T, None, kind)
                return
            for name in tensor.ours:
                weight = weights[name]
                order = row_order(config, name, weight.shape[0], interleaved=False)
                yield from pieces(weight, order, kind)
        except ValueError as error:
            raise FormatError(f"{tensor.name} can't be written: {error}") from None

    return [TensorToWrite(tensor.name, kind, tensor.shape, partial(pieces_of, tensor)) for tensor in layout]


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def config_files(
    config: ModelConfig, dtype: str, generation: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of config.json and generation_config.json. generation, other: OpenedModel's."""
    ends = [int(token) for token in generation.get("end_ids", ())]
    ids = {"bos_token_id": other.get("bos_token_id"), "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    if "pad_token_id" in other:
        ids["pad_token_id"] = other["pad_token_id"]
    options = {theirs: generation[ours] for ours, theirs in OPTIONS.items() if ours in generation}
    if options.get("temperature") == 0:
        del options["temperature"]
        options["do_sample"] = False
    elif "temperature" in options:  # without one, both take the most probable token
        options["do_sample"] = True
        options["top_k"] = options.get("top_k") or 0  # 0: from all tokens. Without it, transformers takes TOP_K
    return {**config_to_huggingface(config, dtype=dtype), **ids}, {**other, **ids, **options}


def with_begin(other: Mapping[str, Any], begin_id: int | None) -> dict[str, Any]:
    """OpenedModel.other_generation with bos_token_id, the token that begins a text by the tokenizer, unless None."""
    return {**other} if begin_id is None else {**other, "bos_token_id": begin_id}
