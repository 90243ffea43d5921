"""A checkpoint is a folder: model.safetensors, config.json, tokenizer.json, and for going on with training
optimizer.safetensors and progress.json. `load` opens other projects' models too.

Where Hugging Face has a name for the model, weights, config.json and generation_config.json are as transformers has
them, so that it opens the folder, and what is changed there counts; config.json then says in "fastllm" only what theirs
have no words for. Other models have our names.

The checkpoint of a model with an adapter holds the adapter instead, as PEFT has it, and names the model it adds to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import adapters
from .atomic import real_path
from .config import ModelConfig
from .errors import ConfigError, FormatError
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
    is_checkpoint,
    is_free,
    is_set_aside,
    of_one_moment,
    replacing_folder,
    restore,
)
from .formats.opened import float32
from .formats.safetensors_file import TensorToWrite, read_safetensors, write_safetensors
from .generation.config import GenerationConfig
from .hub import download, is_hub_name
from .model import Model
from .optimizers import Optimizer
from .parameters import check_shapes, shapes_of
from .small_files import read_json, read_small
from .tokenizers import load_tokenizer, tokenizer_from_gguf
from .tokenizers.base import Tokenizer
from .vocabulary import check_vocabulary, fitting

# Version 1 has our names for all parameters, and no other project's config.json; 2 has both, and says all in our words.
# Up to version 3, who samples without a top_k does so from all tokens; since then, from as many as in transformers.
FORMAT, VERSION = "fastllm", 4
ANOTHER = "use another checkpoint"
MAX_PROGRESS = 64 << 20  # bytes
JOB = "config.toml"  # a run's, beside its checkpoint
ARRAYS = {**DTYPES, "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}


def save(
    directory: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, in one step from a reader's view. It takes the place of a model in that folder.

    optimizer, progress  kept with it, to go on with training later
    Raises OSError if the disk is full or the folder can't be written; what was there stays. Raises ValueError for a
    model with an adapter: merge it before, or save it alone; for parameters that aren't finite; and for
    generation_options that are none.

    RoPE that turns neighbouring columns (rope_interleaved) is written as Hugging Face has it, rows in another order,
    unless an optimizer is kept: its moments belong to the rows as they are.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"save takes a folder, a Model and its Tokenizer, in this order; got {type(model).__name__} as the second; "
            "save(folder, model, tokenizer)"
        )
    if model.adapter is not None:
        raise ValueError(
            "a checkpoint holds a model without an adapter; got one with; merge_adapter() before, or save_adapter"
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
    """As save, of a model with an adapter or without: of one with, the folder holds the adapter alone.

    It names model.origin as what the adapter adds to, which load then opens too. Whether what is trained is finite has
    been looked at. Raises as save does.
    """
    options = GenerationConfig.of(None, model.generation_options).given  # raises for what load would refuse
    if optimizer is not None and not optimizer.is_of(model):
        raise ValueError("an optimizer must be made for the model that is saved; got another's; save its own, or none")
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"a checkpoint holds a Tokenizer; got {type(tokenizer).__name__}; pass the one of the model")
    if model._backend.dtype != np.float32:
        raise ValueError(
            f"a checkpoint is read as float32; got a model of {model._backend.dtype}, which is for checks; copy its "
            "parameters into one of float32"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"a tokenizer may have at most the model's {model.config.vocab_size} tokens; got {tokenizer.vocab_size}; "
            "save the tokenizer that the model was trained with"
        )
    target = real_path(directory)
    if not is_free(target, is_checkpoint):
        raise FileExistsError(f"{directory} exists and is no checkpoint, so it is not replaced; choose another folder")
    with replacing_folder(target, is_checkpoint) as new:
        with model._lock:  # while a thread trains the model, weights and moments are those between two updates
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
    """A model and its tokenizer, from

        a checkpoint or run folder of ours     in memory, ready to be trained
        a folder of Hugging Face's             GPT-2, Llama, Mistral, Qwen2, Qwen3; safetensors
        a GGUF file                            the same architectures, quantised or not
        a llama2.c checkpoint                  with tokenizer.bin, or tok512.bin for 512 tokens, beside it
        a folder of a low-rank adapter         PEFT's or ours: the model that it names, with the adapter set
        a name such as "org/model"             where there is no such file: from Hugging Face's hub (extra `hf`)

    Other projects' files are mapped into memory and their weights used as they are, without a copy, until something
    trains them (see Model.unfreeze). `model.generation_options` are what the files say about generating. A folder that
    processes save to meanwhile gives what one of them saved.

    Raises FileNotFoundError; FormatError for a file that is damaged or of a kind that can't be opened, which says what
    can; FastllmError where a package is missing, or where a name such as "org/model" (any a/b that isn't there, and so
    a mistyped path) can't be fetched.
    """
    given, origin = _located(path)
    return of_one_moment(given, lambda: _load(path, given, origin, backend))


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
    """A tokenizer by itself: one that load_tokenizer opens, or that of a model that load opens. Raises as they do."""
    given, _ = _located(path)
    folder = _find(given) or given
    is_of_a_tokenizer = folder.suffix in (".json", ".bin") or (folder.is_dir() and not adapters.is_adapter(folder))
    return load_tokenizer(folder) if is_of_a_tokenizer else load(path, backend="numpy")[1]


def _located(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Where a model is on the disk, downloaded if need be, and what its origin is."""
    given = Path(path)
    if not given.exists() and not is_set_aside(given) and is_hub_name(os.fspath(path)):
        return download(os.fspath(path)), os.fspath(path)
    return given, os.path.abspath(path)


def _open_tuned(folder: Path, backend: str) -> tuple[Model, Tokenizer]:
    """The model that an adapter's folder names, with the adapter set."""
    name = adapters.base_name(folder)
    places = folder / name, Path(name)  # from the adapter's folder, as we look at it, or from here, as PEFT does
    # No device, which could be read for ever.
    place = next((place for place in places if os.path.isdir(place) or os.path.isfile(place)), None)
    if place is None and not is_hub_name(name):
        raise FormatError(
            f"{folder / adapters.CONFIG} must name the model it adds to; got {name!r:.200}, which is neither in "
            f"{folder} nor here; mend base_model_name_or_path, or open the model and load_adapter(model, folder)"
        )
    given, origin = _located(place or name)
    base = _find(given) or given
    if adapters.is_adapter(base):
        raise FormatError(
            f"{folder / adapters.CONFIG} must name a model without an adapter; got {name!r:.200}, which has one; merge "
            "that before"
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
    """Warn where the adapter was trained beside another model of that name."""
    if not adapters.is_of(folder, model):
        warnings.warn(
            f"{folder}: the adapter was trained on {name} as it was, which has changed since: bring it back, or train "
            "anew",
            stacklevel=7,
        )


def _open(folder: Path, backend: str) -> tuple[Model, Tokenizer]:
    """A model without an adapter: ours or another project's."""
    own = _own(folder) if is_checkpoint(folder) else None
    if own is None:
        return _open_foreign(folder, backend)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    arrays = read_arrays(folder / WEIGHTS)
    config = own.config
    with _damage(folder / WEIGHTS):
        check_vocabulary(folder, tokenizer, config)
        # Before memory is taken for what may be a damaged configuration.
        if config.layers > len(arrays):
            raise ValueError(
                f"{config.layers} layers have more parameters than the {len(arrays)} here; use another checkpoint"
            )
        if own.has_their_names:
            if has_its_own_head(config, arrays):  # since transformers has saved it
                config = dataclasses.replace(config, tied_head=False)
            arrays = from_huggingface(config, arrays)
        check_shapes(shapes_of(config), arrays)
    model = Model(config, backend=backend)
    with _damage(folder / WEIGHTS):
        model.unfreeze().load(arrays)
    model.generation_options, model.other_generation = own.generation, own.other_generation
    if model.generation_options.get("end_ids") == (tokenizer.end_id,):  # as it is without
        del model.generation_options["end_ids"]
    return model, tokenizer


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What is wrong with a file's content is a FormatError."""
    try:
        yield
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


class _Own(NamedTuple):
    """What the files say of a model that fastllm wrote; whether its weights have Hugging Face's names."""

    config: ModelConfig
    generation: dict[str, Any]
    other_generation: dict[str, Any]
    has_their_names: bool


def _own(folder: Path) -> _Own | None:
    """None for another project's model. Raises FormatError."""
    path = folder / CONFIG
    theirs = read_json(path, ANOTHER)
    own = theirs if theirs.get("format") == FORMAT else theirs.get(FORMAT)
    if own is None:
        return None
    if not isinstance(own, dict) or not isinstance(own.get("model"), dict):
        raise FormatError(f"{path} must describe a model of fastllm's; got something else; use another one")
    version = own.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise FormatError(f"{path} must be of version {VERSION}; got {version!r:.40}; update fastllm")
    generation = own.get("generation", {})
    if not isinstance(generation, dict):
        raise FormatError(f"{path} must hold options of generation in an object; mend it")
    if isinstance(generation.get("end_ids"), list):
        generation["end_ids"] = tuple(generation["end_ids"])
    if isinstance(biases := generation.get("logit_bias"), dict):  # JSON has no numbers for keys
        numbers = {key: int(key) if key.isdecimal() and len(key) < 12 else key for key in biases}
        generation["logit_bias"] = {numbers[key]: bias for key, bias in biases.items()}
    fields = own["model"]
    other: dict[str, Any] = {}
    try:
        if own is not theirs and version > 2:  # what has no words there is here
            said = config_from_huggingface(theirs)
            fields = {**said.to_dict(), **fields}
            facts, other = _said_of_generation(folder, theirs, said, TOP_K if version > 3 else None)
            generation = {**facts, **generation}
        GenerationConfig.of(None, generation)
        return _Own(ModelConfig.from_dict(fields), generation, other, own is not theirs)
    except (ConfigError, FormatError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from None


def _said_of_generation(
    folder: Path, theirs: Mapping[str, Any], config: ModelConfig, top_k: int | None = TOP_K, warns: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    facts, other = read_generation(folder, config.vocab_size, theirs, top_k, warns)
    return {name: value for name, value in facts.items() if value != ()}, other


def _open_foreign(path: Path, backend: str) -> tuple[Model, Tokenizer]:
    """A model of another project."""
    opened = open_model(path)
    tokenizer = fitting(path, _foreign_tokenizer(opened), opened.config)
    model = Model(opened.config, backend=backend, weights=opened.weights)
    options = dict(opened.generation)
    if opened.source == "gguf":  # which names one or two of them; readers know the others by their names
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
    """The progress kept with a checkpoint, and the optimizer's state put into `optimizer`.

    Raises FileNotFoundError where there is no checkpoint, FormatError for one without progress or that is damaged.
    """
    folder = find_checkpoint(path)
    if not (folder / PROGRESS).exists():
        raise FormatError(f"{folder} must hold {PROGRESS} to go on with training; got a model only; start a new run")
    content = read_small(folder / PROGRESS, MAX_PROGRESS, ANOTHER)
    try:
        progress = json.loads(content.decode("utf-8"))  # with NaN, which one's own may have
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{folder / PROGRESS} must hold JSON; got {error}; {ANOTHER}") from None
    if not isinstance(progress, dict):
        raise FormatError(f"{folder / PROGRESS} must hold a JSON object; got {type(progress).__name__}; {ANOTHER}")
    if optimizer is not None:
        try:
            optimizer.load_state(read_arrays(folder / OPTIMIZER))
        except ValueError as error:
            raise FormatError(f"{folder / OPTIMIZER}: {error}") from None
    return progress


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder at path, or in the run folder at path."""
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
    """Weights and config.json, with Hugging Face's names where it has some.

    options      the model's of generation
    keeps_order  rows stay where they are, as the optimizer's moments do. Hugging Face has RoPE on the halves of a
                 head, so rows of a model that has it on pairs would change places
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
    # Stop strings in theirs would have transformers ask for the tokenizer each time: they are said in our words.
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
    """The fields that are not said already."""
    return {name: value for name, value in fields.items() if name not in said or said[name] != value}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, which stays open for them. Raises FormatError if it is missing or damaged."""
    try:
        stored = read_safetensors(path)
    except FileNotFoundError:
        raise FormatError(f"{path} must be there; got no such file; the checkpoint is not complete") from None
    with naming(path):
        arrays = {name: stored_array(name, tensor, ARRAYS) for name, tensor in stored.items()}
    return {name: float32(array) if stored[name].dtype == "BF16" else array for name, array in arrays.items()}


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    names = {dtype: name for name, dtype in ARRAYS.items() if name != "BF16"}

    def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    tensors = [
        TensorToWrite(name, names[array.dtype], array.shape, partial(pieces, array)) for name, array in arrays.items()
    ]
    try:
        write_safetensors(path, tensors)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            error.errno, f"{path} could not be written: {reason}; what was there before is untouched"
        ) from None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, default=_python_number) + "\n", encoding="utf-8")


def _python_number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
