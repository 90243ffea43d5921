"""Reads Hugging Face folders: config.json, generation_config.json and weights as safetensors."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..parameters import POSITIONS
from ..small_files import brief, read_json
from .bytes_of_file import naming
from .huggingface import has_its_own_head, head_and_embedding, needed, renamed
from .huggingface_config import config_from_huggingface
from .opened import RANGES, OpenedModel, float32, generation_facts, named_ids, packed
from .safetensors_file import StoredTensor, read_safetensors, read_shards

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
# Our generation option -> theirs.
OPTIONS = {
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
                               "length_penalty", "early_stopping")},
    "max_tokens": "max_new_tokens",
    "stop": "stop_strings",
}  # fmt: skip
IDS = ("bos_token_id", "pad_token_id")
# Keys that are read here, or that a writer sets anew.
SAID = {*OPTIONS.values(), *IDS, "do_sample", "eos_token_id", "transformers_version", "_from_model_config"}
TOP_K = 50  # transformers' default if do_sample is true
# Options of transformers that fastllm lacks or leaves to the caller. They are off if 0, null or empty, and those in
# OFF_AT_ONE also if 1.
UNUSED = (
    "num_beams", "num_beam_groups", "guidance_scale", "encoder_repetition_penalty", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "force_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "sequence_bias", "exponential_decay_length_penalty", "penalty_alpha", "diversity_penalty",
    "epsilon_cutoff", "eta_cutoff", "top_h", "dola_layers", "watermarking_config", "constraints", "token_healing",
    "max_time",
)  # fmt: skip
OFF_AT_ONE = UNUSED[:4]
UNUSED_IDS = ("forced_bos_token_id", "forced_eos_token_id")
# Invalid values of these are ignored with a warning rather than refused.
LENIENT = ("typical_p", "length_penalty", "early_stopping", "max_tokens", "stop")


def holds_a_model(folder: Path) -> bool:
    """Whether a folder has a model's config.json and weights, in one file or several."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def open_huggingface(folder: Path) -> OpenedModel:
    """Open a folder. Matrices are views of its files, except GPT-2's, which are (in, out): those are copied.

    Raises FormatError for a model that fastllm can't run and a damaged file, OSError where one can't be opened.
    """
    fields = read_json(folder / CONFIG)
    if fields.get("format") == "fastllm":
        raise FormatError(f"{folder} must be another project's model; got a fastllm checkpoint; use fastllm.load")
    if fields.get("quantization_config"):
        raise FormatError(
            f"{folder} must have weights of float32, float16 or bfloat16; got quantised ones, "
            f"{brief(fields['quantization_config'])}; use the model they were made from, or a GGUF file"
        )
    with naming(folder):
        config, stored = config_from_huggingface(fields), _stored(folder)
        two = {name: stored_array(name, stored[name]) for name in head_and_embedding(config) if name in stored}
        if has_its_own_head(config, two):
            config = dataclasses.replace(config, tied_head=False)
        given = needed(config, stored)
        arrays = renamed(config, {name: stored_array(name, tensor) for name, tensor in given.items()})
    generation, other = read_generation(folder, config.vocab_size, fields)
    return OpenedModel(
        config=config,
        weights={
            name: packed(array) if array.ndim == 2 and name != POSITIONS else float32(array)
            for name, array in arrays.items()
        },
        source="huggingface",
        path=folder,
        generation=generation,
        other_generation=other,
    )


def _stored(folder: Path) -> dict[str, StoredTensor]:
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return read_shards(folder / INDEX)
    for name in PICKLES:
        if (folder / name).is_file():
            raise FormatError(
                f"{folder} must hold {WEIGHTS}; got {name} only, a pickle, which runs code when it is opened; "
                "download the safetensors, or convert it with save_pretrained on a disposable machine"
            )
    raise FormatError(f"{folder} must hold {WEIGHTS} or {INDEX}; got neither; download the weights too")


def stored_array(name: str, tensor: StoredTensor, dtypes: Mapping[str, np.dtype[Any]] = DTYPES) -> NDArray[Any]:
    """A tensor as an array, a view of the file if aligned. Raises FormatError for a type that is not in dtypes."""
    if tensor.dtype not in dtypes:
        raise FormatError(
            f"tensor {brief(name)} must be of {', '.join(dtypes)}; got {brief(tensor.dtype)}; "
            "convert the model to one of these"
        )
    dtype = dtypes[tensor.dtype]
    data = tensor.data
    if data.size and data.ctypes.data % dtype.itemsize:  # unaligned; common writers pad the header
        data = data.copy()
    return data.view(dtype).reshape(tensor.shape)


def read_generation(
    folder: Path, vocab_size: int, config: Mapping[str, Any], top_k: int | None = TOP_K, warns: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """OpenedModel.generation and other_generation, from generation_config.json, or from config.json as in older models.

    config  content of config.json, whose token ids count where generation_config.json has none
    top_k   default if do_sample is true
    warns   whether to warn of options that fastllm lacks
    """
    path = folder / GENERATION if (folder / GENERATION).is_file() else folder / CONFIG
    fields = read_json(path) if path.name == GENERATION else config
    end_ids = fields.get("eos_token_id", config.get("eos_token_id"))
    options = {ours: fields.get(theirs) for ours, theirs in OPTIONS.items()}
    if fields.get("do_sample") is True:
        options["temperature"] = 1.0 if options["temperature"] is None else options["temperature"]
        options["top_k"] = top_k if options["top_k"] is None else options["top_k"]
    unused = [name for name in UNUSED if fields.get(name) and not (name in OFF_AT_ONE and fields[name] == 1)]
    unused += [name for name in UNUSED_IDS if fields.get(name) is not None]
    for name in LENIENT:
        if options[name] is not None and not RANGES[name][0](options[name]):
            unused.append(OPTIONS[name])
            options[name] = None
    if unused and warns:
        warnings.warn(f"{path} sets {', '.join(unused)}: fastllm generates without", stacklevel=4)
    facts = generation_facts(path, vocab_size, end_ids if isinstance(end_ids, list) else [end_ids], options)
    if fields.get("do_sample") is False:
        facts["temperature"] = 0.0
    elif fields.get("do_sample") is not True:  # transformers is greedy then, whatever the temperature
        facts.pop("temperature", None)
    other = {} if fields is config else {k: v for k, v in fields.items() if k not in SAID and v is not None}
    return facts, other | named_ids(path, vocab_size, {name: fields.get(name, config.get(name)) for name in IDS})
