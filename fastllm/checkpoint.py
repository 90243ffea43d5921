"""A checkpoint is a folder: model.safetensors, config.json and tokenizer.json, and to resume training
optimizer.safetensors and progress.json. `load` opens other projects' models too.

If transformers has an architecture for the model, weights, config.json and generation_config.json are in its format:
it opens the folder, and edits to these files take effect. What the format can't express is in config.json under
"fastllm". Other models are stored under our own parameter names.

The checkpoint of a model with an adapter holds the adapter instead, in PEFT's format, and names the base model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import adapters
from .atomic import real_path
from .config import ModelConfig
from .errors import FormatError
from .formats import OpenedModel, open_model
from .formats.bytes_of_file import naming
from .formats.huggingface import from_huggingface, has_its_own_head, to_huggingface
from .formats.huggingface_config import config_from_huggingface, model_type
from .formats.huggingface_export import config_files, with_begin
from .formats.huggingface_folder import (
    CONFIG,
    DTYPES,
    GENERATION,
    TOP_K,
    WEIGHTS,
    read_generation,
    stored_array,
)
from .formats.model_folder import (
    OPTIMIZER,
    PROGRESS,
    TOKENIZER,
    is_being_replaced,
    is_checkpoint,
    is_free,
    read_consistently,
    replacing_folder,
    restore,
)
from .formats.modules import check_layers
from .formats.opened import float32
from .formats.safetensors_file import array_to_write, read_safetensors, write_safetensors
from .generation.config import GenerationConfig
from .hub import download, is_hub_name
from .model import Model
from .optimizers import Optimizer
from .parameters import check_shapes, shapes_of
from .small_files import brief, read_json, read_small
from .tokenizers import load_tokenizer, tokenizer_from_gguf
from .tokenizers.base import Tokenizer
from .vocabulary import check_vocabulary, fitting

# Version 1 has our names alone. 2 has Hugging Face's config.json, and all of ours in it; 3 has of ours only what theirs
# can't express. Up to 3, sampling without top_k is from all tokens; from 4 on it takes transformers' default, TOP_K.
FORMAT, VERSION = "fastllm", 4
ANOTHER = "use another checkpoint"
MAX_PROGRESS = 64 << 20  # bytes
JOB = "config.toml"  # in a run folder, beside its checkpoint folder
ARRAYS = {**DTYPES, "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}


def save(
    directory: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder atomically. It replaces a model that is in that folder.

    optimizer, progress  saved too, to resume training later

    If the disk is full or the folder can't be written, raises OSError and leaves what was there. Raises ValueError for
    a model with an adapter (merge it first, or use save_adapter) or of float64, parameters that aren't finite, invalid
    generation_options, a tokenizer with more tokens than the model and another model's optimizer; TypeError for what
    is no Model or Tokenizer; FileExistsError for a folder that holds something else.

    The query and key rows of a model with rope_interleaved are reordered to Hugging Face's layout, unless an optimizer
    is saved too: its moments belong to the rows as they are.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"save takes a folder, a Model and its Tokenizer, in this order; got {type(model).__name__} as the second; "
            "save(folder, model, tokenizer)"
        )
    if model.adapter is not None:
        raise ValueError(
            "save takes a model without an adapter; got one with; call merge_adapter() first, or use save_adapter"
        )
    if not model.is_frozen:
        model.trainable.check_finite()
    save_tuned(directory, model, tokenizer, optimizer, progress)


def save_tuned(
    directory: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """As save, but of a model with an adapter write the adapter alone, naming model.origin as its base model.

    load opens either. The caller has checked that the trained parameters are finite. Raises as save does.
    """
    options = GenerationConfig.of(None, model.generation_options).given  # raises for what load would refuse
    if optimizer is not None and not optimizer.is_of(model):
        raise ValueError("an optimizer must be made for the model that is saved; got another's; save its own, or none")
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"a checkpoint holds a Tokenizer; got {type(tokenizer).__name__}; pass the model's tokenizer")
    if model._backend.dtype != np.float32:
        raise ValueError(
            f"a checkpoint must be of a float32 model; got one of {model._backend.dtype}, which is for checks; copy "
            "its parameters into a float32 model"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"a tokenizer must have at most as many tokens as the model's vocab_size, {model.config.vocab_size}; "
            f"got {tokenizer.vocab_size}; save the tokenizer that the model was trained with"
        )
    target = real_path(directory)
    if not is_free(target, is_checkpoint):
        raise FileExistsError(f"{directory} must be new or a checkpoint; got something else; choose another folder")
    with replacing_folder(target, is_checkpoint) as new:
        with model._lock:  # so that weights and moments are of the same update while another thread trains
            if model.adapter is not None:
                adapters.write_adapter(new, model.config, model.adapter, model.origin, adapters.checksum_of(model))
            else:
                _write_model(new, model, tokenizer, options, keeps_order=optimizer is not None)
            if optimizer is not None:
                _write_arrays(new / OPTIMIZER, optimizer.state())
        tokenizer.save_into(new)
        if progress is not None or optimizer is not None:
            _write_json(new / PROGRESS, dict(progress or {}))


def load(path: str | os.PathLike[str], backend: str = "numba") -> tuple[Model, Tokenizer]:
    """Open a model and its tokenizer, from

        a checkpoint or run folder             loaded into memory as float32, ready to be trained
        a Hugging Face folder                  GPT-2, Llama, Mistral, Qwen2, Qwen3; safetensors
        a GGUF file                            the same architectures, quantised or not
        a llama2.c checkpoint                  with tokenizer.bin, or tok512.bin for 512 tokens, beside it
        the folder of a LoRA adapter           PEFT's or ours: the base model that it names, with the adapter set
        a name such as "org/model"             from the Hugging Face hub (extra `hf`), if there is no such path

    backend  "numba" (the compiled kernels) or "numpy" (their twins)

    Other projects' files are memory-mapped and their weights used as stored, without a copy, until something trains
    them (see Model.unfreeze). `model.generation_options` has what the files say about generation. If another process
    saves to the folder at the same time, the result is one of the saved models, never a mix.

    Raises FileNotFoundError; FormatError for a file that is damaged or not supported; FastllmError where a package is
    missing, or where a name such as "org/model" can't be downloaded; ValueError for another backend. A mistyped path
    a/b counts as such a name.
    """
    given, origin = located(path)
    return read_consistently(given, lambda: _load(path, given, origin, backend))


def _load(path: str | os.PathLike[str], given: Path, origin: str, backend: str) -> tuple[Model, Tokenizer]:
    folder = _find(given) or given
    if adapters.is_adapter(folder):
        model, tokenizer = _open_tuned(folder, backend)
    else:
        if (folder / JOB).is_file() and not (folder / CONFIG).exists():
            raise FormatError(
                f"{path} must hold a model; got a run that has no checkpoint yet; train it first: `fastllm train --run "
                f"{path} --resume`"
            )
        model, tokenizer = _open(folder, backend)
        model.origin = origin
    return model, tokenizer


def load_its_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer at a path that load_tokenizer opens, or that of a model that load opens. Raises as they do."""
    given, _ = located(path, needs_weights=False)
    folder = _find(given) or given
    is_of_a_tokenizer = folder.suffix in (".json", ".bin") or (folder.is_dir() and not adapters.is_adapter(folder))
    return load_tokenizer(folder) if is_of_a_tokenizer else load(path, backend="numpy")[1]


def located(path: str | os.PathLike[str], needs_weights: bool = True) -> tuple[Path, str]:
    """The path of a model on disk, after a download if it is a name on the hub; and its Model.origin."""
    given = Path(path)
    if not given.exists() and not is_being_replaced(given) and is_hub_name(os.fspath(path)):
        return download(os.fspath(path), needs_weights), os.fspath(path)
    return given, os.path.abspath(path)


def _open_tuned(folder: Path, backend: str) -> tuple[Model, Tokenizer]:
    """The base model that an adapter's folder names, with the adapter set."""
    name = adapters.base_name(folder)
    places = folder / name, Path(name)  # relative to the adapter's folder, or to the current one, as in PEFT
    # Not a device, which may never end.
    place = next((place for place in places if os.path.isdir(place) or os.path.isfile(place)), None)
    if place is None and not is_hub_name(name):
        raise FormatError(
            f"{folder / adapters.CONFIG} must name its base model; got {name!r:.200}, which is neither in {folder} nor "
            "in the current folder; fix base_model_name_or_path, or open the model and load_adapter(model, folder)"
        )
    given, origin = located(place or name)
    base = _find(given) or given
    if adapters.is_adapter(base):
        raise FormatError(
            f"{folder / adapters.CONFIG} must name a model without an adapter; got {name!r:.200}, which has one; merge "
            "that one first"
        )
    model, tokenizer = _open(base, backend)
    adapter = adapters.read_adapter(model.config, folder)
    if (folder / TOKENIZER).is_file():
        tokenizer = fitting(folder, load_tokenizer(folder / TOKENIZER), model.config)
    model.origin = origin
    _check_base(folder, model, name)
    model.set_adapter(adapter)
    return model, tokenizer


def _check_base(folder: Path, model: Model, name: str) -> None:
    """Warn if the base model's weights are not those that the adapter was trained with."""
    if not adapters.is_of(folder, model):
        warnings.warn(
            f"{folder}: the adapter was trained on {name}, which has changed since: restore that model, or train the "
            "adapter again",
            stacklevel=7,
        )


def _open(folder: Path, backend: str) -> tuple[Model, Tokenizer]:
    """Open a model without an adapter, ours or another project's."""
    own = _own(folder) if is_checkpoint(folder) else None
    if own is None:
        return _open_foreign(folder, backend)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    arrays = read_arrays(folder / WEIGHTS)
    config = own.config
    with _damage(folder / WEIGHTS):
        check_vocabulary(folder, tokenizer, config)
        check_layers(config, arrays)
        if own.has_their_names:
            if has_its_own_head(config, arrays):  # untied when transformers saved it again
                config = dataclasses.replace(config, tied_head=False)
            arrays = from_huggingface(config, arrays)
        check_shapes(shapes_of(config), arrays)
    model = Model(config, backend=backend)
    with _damage(folder / WEIGHTS):
        model.unfreeze().load(arrays)
    model.generation_options, model.other_generation = own.generation, own.other_generation
    if model.generation_options.get("end_ids") == (tokenizer.end_id,):  # the default
        del model.generation_options["end_ids"]
    return model, tokenizer


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn a ValueError about a file's content into a FormatError that names the file."""
    try:
        yield
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


class _Own(NamedTuple):
    """The configuration of a model that fastllm wrote.

    generation, other_generation  as Model.generation_options and Model.other_generation
    has_their_names               whether the weights are in Hugging Face's format
    """

    config: ModelConfig
    generation: dict[str, Any]
    other_generation: dict[str, Any]
    has_their_names: bool


def _own(folder: Path) -> _Own | None:
    """Read the configuration; None for another project's model. Raises FormatError."""
    path = folder / CONFIG
    theirs = read_json(path, ANOTHER)
    own = theirs if theirs.get("format") == FORMAT else theirs.get(FORMAT)
    if own is None:
        return None
    if not isinstance(own, dict) or not isinstance(own.get("model"), dict):
        raise FormatError(f"{path} must describe a fastllm model; got something else; {ANOTHER}")
    version = own.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise FormatError(f"{path} must have a version from 1 to {VERSION}; got {version!r:.40}; update fastllm")
    generation = own.get("generation", {})
    if not isinstance(generation, dict):
        raise FormatError(f"{path} must have generation options as an object; got {brief(generation)}; fix it")
    if isinstance(generation.get("end_ids"), list):
        generation["end_ids"] = tuple(generation["end_ids"])
    if isinstance(biases := generation.get("logit_bias"), dict):  # JSON keys are texts
        generation["logit_bias"] = {
            int(key) if key.isdecimal() and len(key) < 12 else key: bias for key, bias in biases.items()
        }
    fields = own["model"]
    other: dict[str, Any] = {}
    try:
        if own is not theirs and version > 2:  # ours has only what theirs lacks
            said = config_from_huggingface(theirs)
            fields = {**said.to_dict(), **fields}
            facts, other = _said_of_generation(folder, theirs, said, TOP_K if version > 3 else None)
            generation = {**facts, **generation}
        GenerationConfig.of(None, generation)
        return _Own(ModelConfig.from_dict(fields), generation, other, own is not theirs)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from None


def _said_of_generation(
    folder: Path, theirs: Mapping[str, Any], config: ModelConfig, top_k: int | None = TOP_K, warns: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    facts, other = read_generation(folder, config.vocab_size, theirs, top_k, warns)
    return {name: value for name, value in facts.items() if value != ()}, other


def _open_foreign(path: Path, backend: str) -> tuple[Model, Tokenizer]:
    """Open another project's model."""
    opened = open_model(path)
    tokenizer = fitting(path, _foreign_tokenizer(opened), opened.config)
    model = Model(opened.config, backend=backend, weights=opened.weights)
    options = dict(opened.generation)
    if opened.source == "gguf":  # which lists at most a few end tokens; the others are known by their texts
        options["end_ids"] = tuple(dict.fromkeys([*options["end_ids"], *sorted(tokenizer.end_ids)]))
    if not options.get("end_ids"):
        options.pop("end_ids", None)
    model.generation_options, model.other_generation = options, opened.other_generation
    return model, tokenizer


def _foreign_tokenizer(opened: OpenedModel) -> Tokenizer:
    if opened.source == "gguf":
        return tokenizer_from_gguf(opened.tokenizer_metadata)
    if opened.source == "huggingface":
        return load_tokenizer(opened.path)
    names = [f"tok{opened.config.vocab_size}.bin", "tokenizer.bin"]  # as llama2.c calls them
    for name in names:
        if (opened.path.parent / name).is_file():
            return load_tokenizer(opened.path.parent / name)
    raise FormatError(
        f"a checkpoint of llama2.c must have its tokenizer beside it; got no {' or '.join(names)} in "
        f"{opened.path.parent}; copy it there"
    )


def load_progress(path: str | os.PathLike[str], optimizer: Optimizer | None = None) -> dict[str, Any]:
    """The progress saved with a checkpoint; also loads the saved optimizer state into `optimizer`, if given.

    Raises FileNotFoundError where there is no checkpoint, FormatError for one that is damaged or has no progress.
    """
    folder = find_checkpoint(path)
    if not (folder / PROGRESS).exists():
        raise FormatError(f"{folder} must hold {PROGRESS} to resume training; got a model only; start a new run")
    content = read_small(folder / PROGRESS, MAX_PROGRESS, ANOTHER)
    try:
        progress = json.loads(content.decode("utf-8"))  # NaN is allowed: a loss may be
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{folder / PROGRESS} must hold JSON; got {error}; {ANOTHER}") from None
    if not isinstance(progress, dict):
        raise FormatError(f"{folder / PROGRESS} must hold a JSON object; got {type(progress).__name__}; {ANOTHER}")
    if optimizer is not None:
        state = read_arrays(folder / OPTIMIZER)
        try:
            optimizer.load_state(state)
        except ValueError as error:
            raise FormatError(f"{folder / OPTIMIZER}: {error}") from None
    return progress


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder at path, or in the run folder at path. Raises FileNotFoundError, FormatError."""
    folder = _find(Path(path))
    if folder is not None:
        return folder
    if not Path(path).exists():
        raise FileNotFoundError(f"there must be a checkpoint or run folder at {path}; got nothing; check the name")
    raise FormatError(
        f"{path} must hold {CONFIG} and {WEIGHTS}, or a checkpoint folder; got neither; "
        "name a folder that `fastllm train` or fastllm.save wrote"
    )


def _find(path: Path) -> Path | None:
    for folder in (path, path / "checkpoint"):
        restore(folder)
        if is_checkpoint(folder):
            return folder
    return None


def _write_model(
    folder: Path, model: Model, tokenizer: Tokenizer, options: Mapping[str, Any], keeps_order: bool
) -> None:
    """Write weights and config.json, in Hugging Face's format if it has the architecture.

    options      the model's generation options
    keeps_order  rows must not be reordered, as the optimizer's moments are not. Hugging Face has RoPE on the halves of
                 a head, so a model with RoPE on pairs is then written in our own format
    """
    config, parameters = model.config, model.parameters
    try:
        model_type(config)
        is_known = not (keeps_order and config.rope_interleaved)
    except FormatError:
        is_known = False
    if not is_known:
        own = {"format": FORMAT, "version": VERSION, "generation": options, "model": config.to_dict()}
        _write_arrays(folder / WEIGHTS, parameters)
        _write_json(folder / CONFIG, own)
        return
    _write_arrays(folder / WEIGHTS, to_huggingface(config, parameters))
    ends = {"end_ids": (tokenizer.end_id,)}
    other = with_begin(model.other_generation, tokenizer.bos_id)
    # Stop strings go into our part: with them in theirs, transformers' generate asks for the tokenizer in each call.
    said_there = {name: value for name, value in options.items() if name != "stop"}
    theirs, generation = config_files(config, "float32", {**ends, **said_there}, other)
    _write_json(folder / GENERATION, generation)
    said = config_from_huggingface(theirs)
    own = {
        "version": VERSION,
        "generation": _beyond(options, _said_of_generation(folder, theirs, said, warns=False)[0]),
        "model": _beyond(dataclasses.replace(config, rope_interleaved=False).to_dict(), said.to_dict()),
    }
    _write_json(folder / CONFIG, {**theirs, FORMAT: own})


def _beyond(fields: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `said` lacks or has another value for."""
    return {name: value for name, value in fields.items() if name not in said or said[name] != value}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: views of it, bfloat16 as a float32 copy.

    Raises FormatError if the file is missing or damaged.
    """
    try:
        stored = read_safetensors(path)
    except FileNotFoundError:
        raise FormatError(f"{path} must exist; got no such file; the checkpoint is not complete") from None
    with naming(path):
        arrays = {name: stored_array(name, tensor, ARRAYS) for name, tensor in stored.items()}
    return {name: float32(array) if stored[name].dtype == "BF16" else array for name, array in arrays.items()}


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    names = {dtype: name for name, dtype in ARRAYS.items() if name != "BF16"}  # which would be uint16
    tensors = [array_to_write(name, names[array.dtype], array) for name, array in arrays.items()]
    write_safetensors(path, tensors)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, default=_python_number) + "\n", encoding="utf-8")


def _python_number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
