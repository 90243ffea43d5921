"""A checkpoint is a folder: model.safetensors, config.json, tokenizer.json, and for going on with training
optimizer.safetensors and progress.json. `load` opens other projects' models too.

Where Hugging Face has a name for the model, weights and config.json are as transformers has them, so that it opens the
folder; config.json then says in "fastllm" what theirs has no words for. Other models have our names.

The checkpoint of a model with an adapter holds the adapter instead, as PEFT has it, and names the model it adds to.

It is written whole beside the old one and then takes its place, so that at any moment one of the two is
complete: `.checkpoint.new` becomes `checkpoint` after that has become `.checkpoint.old`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from . import adapters
from .config import ModelConfig
from .errors import ConfigError, FormatError
from .formats import OpenedModel, open_model
from .formats.huggingface import from_huggingface, to_huggingface
from .formats.huggingface_config import model_type
from .formats.huggingface_export import config_files
from .hub import download, is_hub_name
from .model import Model
from .optimizers import Optimizer
from .parameters import check_shapes, parameter_shapes
from .tokenizers import load_tokenizer, tokenizer_from_gguf
from .tokenizers.base import Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
GENERATION = "generation_config.json"
OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"
FORMAT, VERSION = "fastllm", 2  # version 1 has our names for all parameters, and no other project's config.json


def save(
    directory: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, in one step from a reader's view.

    optimizer, progress  kept with it, to go on with training later
    Raises OSError if the disk is full or the folder can't be written; what was there stays. Raises ValueError for a
    model with an adapter: merge it before, or save it alone.
    """
    if model.adapter is not None:
        raise ValueError(
            "a checkpoint holds a model without an adapter; got one with; merge_adapter() before, or save_adapter"
        )
    save_tuned(directory, model, tokenizer, optimizer, progress)


def save_tuned(
    directory: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """As save, of a model with an adapter or without: of one with, the folder holds the adapter alone.

    It names model.origin as what the adapter adds to, which load then opens too.
    """
    target = Path(directory).resolve()
    if target.exists() and not _is_checkpoint(target) and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{directory} exists and is no checkpoint, so it is not replaced; choose another folder")
    new, old = _beside(target, "new"), _beside(target, "old")
    target.parent.mkdir(parents=True, exist_ok=True)
    _restore(target)
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        if model.adapter is not None:
            adapters.write_adapter(new, model.config, model.adapter, model.origin)
        else:
            _write_model(new, model, tokenizer, keeps_order=optimizer is not None)
        tokenizer.save_into(new)
        if optimizer is not None:
            _write_arrays(new / OPTIMIZER, optimizer.state())
        if progress is not None:
            _write_json(new / PROGRESS, dict(progress))
        _flush(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def load(path: str | os.PathLike[str], backend: str = "numba") -> tuple[Model, Tokenizer]:
    """A model and its tokenizer, from

        a checkpoint or run folder of ours     in memory, ready to be trained
        a folder of Hugging Face's             GPT-2, Llama, Mistral, Qwen2, Qwen3; safetensors
        a GGUF file                            the same architectures, quantised or not
        a llama2.c checkpoint                  with tokenizer.bin, or tok512.bin for 512 tokens, beside it
        a folder of a low-rank adapter         PEFT's or ours: the model that it names, with the adapter set
        a name such as "org/model"             where there is no such file: from Hugging Face's hub (extra `hf`)

    Other projects' files are mapped into memory and their weights used as they are, without a copy, until something
    trains them (see Model.unfreeze). `model.generation_options` are what the files say about generating.

    Raises FileNotFoundError, or FormatError for a file that is damaged or of a kind that can't be opened; it says
    which can.
    """
    given, origin = _located(path)
    folder = _find(given) or given
    if adapters.is_adapter(folder):
        model, tokenizer = _open_tuned(folder, backend)
    else:
        model, tokenizer = _open(folder, backend)
        model.origin = origin
    return model, tokenizer


def _located(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Where a model is on the disk, downloaded if need be, and what its origin is."""
    given = Path(path)
    if not given.exists() and not _beside(given.resolve(), "old").exists() and is_hub_name(os.fspath(path)):
        return download(os.fspath(path)), os.fspath(path)
    return given, os.path.abspath(path)


def _open_tuned(folder: Path, backend: str) -> tuple[Model, Tokenizer]:
    """The model that an adapter's folder names, with the adapter set."""
    name = adapters.base_name(folder)
    beside = folder / name  # name itself, if that is absolute
    is_there = os.path.isdir(beside) or os.path.isfile(beside)  # no device, which could be read for ever
    if not is_there and not is_hub_name(name):
        raise FormatError(
            f"{folder / adapters.CONFIG} must name the model it adds to; got {name!r:.200}, which is not there; mend "
            "base_model_name_or_path, or open the model and load_adapter(model, folder)"
        )
    given, origin = _located(beside if is_there else name)
    base = _find(given) or given
    if adapters.is_adapter(base):
        raise FormatError(
            f"{folder / adapters.CONFIG} must name a model without an adapter; got {name!r:.200}, which has one; merge "
            "that before"
        )
    model, tokenizer = _open(base, backend)
    if (folder / TOKENIZER).is_file():
        tokenizer = load_tokenizer(folder / TOKENIZER)
        _check_vocabulary(folder, tokenizer, model.config)
    model.origin = origin
    model.set_adapter(adapters.read_adapter(model.config, folder))
    return model, tokenizer


def _open(folder: Path, backend: str) -> tuple[Model, Tokenizer]:
    """A model without an adapter: ours or another project's."""
    fields = _own_fields(folder) if _is_checkpoint(folder) else None
    if fields is None:
        return _open_foreign(folder, backend)
    try:
        config = ModelConfig.from_dict(fields["model"])
    except ConfigError as error:
        raise FormatError(f"{folder / CONFIG}: {error}") from None
    tokenizer = load_tokenizer(folder / TOKENIZER)
    arrays = read_arrays(folder / WEIGHTS)
    try:
        _check_vocabulary(folder, tokenizer, config)
        # Before memory is taken for what may be a damaged configuration.
        if config.layers > len(arrays):
            raise ValueError(
                f"{config.layers} layers have more parameters than the {len(arrays)} here; use another checkpoint"
            )
        if fields["names"] == "huggingface":
            arrays = from_huggingface(config, arrays)
        decayed, others = parameter_shapes(config)
        check_shapes(decayed | others, arrays)
        model = Model(config, backend=backend)
        model.unfreeze().load(arrays)
    except ValueError as error:
        raise FormatError(f"{folder / WEIGHTS}: {error}") from None
    model.generation_options = fields["generation"]
    return model, tokenizer


def _own_fields(folder: Path) -> dict[str, Any] | None:
    """What config.json says of a model that fastllm wrote: model, names, generation; None for another project's."""
    fields = _read_json(folder / CONFIG)
    if not isinstance(fields, dict):
        raise FormatError(f"{folder / CONFIG} must hold a JSON object; got {type(fields).__name__}; use another folder")
    own = fields if fields.get("format") == FORMAT else fields.get(FORMAT)
    if own is None:
        return None
    names = "huggingface" if own is not fields else "fastllm"
    if not isinstance(own, dict) or not isinstance(own.get("model"), dict):
        raise FormatError(f"{folder / CONFIG} must describe a model of fastllm's; got something else; use another one")
    if own.get("version") not in (1, VERSION):
        raise FormatError(
            f"{folder / CONFIG} must be of version {VERSION}; got {own.get('version')!r:.40}; update fastllm"
        )
    generation = own.get("generation", {})
    if not isinstance(generation, dict):
        raise FormatError(f"{folder / CONFIG} must hold options of generation in an object; mend it")
    if isinstance(generation.get("end_ids"), list):
        generation["end_ids"] = tuple(generation["end_ids"])
    return {"model": own["model"], "names": names, "generation": generation}


def _open_foreign(path: Path, backend: str) -> tuple[Model, Tokenizer]:
    """A model of another project."""
    if not path.exists():
        raise FileNotFoundError(
            f"there must be a model at {path}; got nothing; check the name: a run or checkpoint folder, a folder of "
            "Hugging Face's, or a GGUF file"
        )
    opened = open_model(path)
    tokenizer = _foreign_tokenizer(opened)
    _check_vocabulary(path, tokenizer, opened.config)
    model = Model(opened.config, backend=backend, weights=opened.weights)
    options = {name: value for name, value in opened.generation.items() if name != "begin_id"}
    if not options.get("end_ids"):
        options.pop("end_ids", None)
    model.generation_options = options
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


def _check_vocabulary(path: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """A model may have more rows than there are tokens, which nothing uses, but not fewer."""
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"{path}: tokenizer and model must have one vocabulary; got {tokenizer.vocab_size} tokens and "
            f"vocab_size {config.vocab_size}; the files are of two models"
        )


def load_progress(path: str | os.PathLike[str], optimizer: Optimizer | None = None) -> dict[str, Any]:
    """The progress kept with a checkpoint, and the optimizer's state put into `optimizer`."""
    folder = find_checkpoint(path)
    if not (folder / PROGRESS).exists():
        raise FormatError(f"{folder} must hold {PROGRESS} to go on with training; got a model only; start a new run")
    progress = _read_json(folder / PROGRESS)
    if not isinstance(progress, dict):
        raise FormatError(f"{folder / PROGRESS} must hold a JSON object; got something else; start a new run")
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
        _restore(folder)
        if _is_checkpoint(folder):
            return folder
    return None


def _write_model(folder: Path, model: Model, tokenizer: Tokenizer, keeps_order: bool) -> None:
    """Weights and config.json, with Hugging Face's names where it has some.

    keeps_order  rows stay where they are, as the optimizer's moments do. Hugging Face has RoPE on the halves of a
                 head, so rows of a model that has it on pairs would change places
    """
    config, parameters = model.config, model.parameters
    own: dict[str, Any] = {"version": VERSION, "generation": dict(model.generation_options)}
    try:
        model_type(config)
        is_known = not (keeps_order and config.rope_interleaved)
    except FormatError:
        is_known = False
    if not is_known:
        _write_arrays(folder / WEIGHTS, parameters)
        _write_json(folder / CONFIG, {"format": FORMAT, **own, "model": config.to_dict()})
        return
    _write_arrays(folder / WEIGHTS, to_huggingface(config, parameters), {"format": "pt"})
    options = {"end_ids": (tokenizer.end_id,), "begin_id": tokenizer.begin_id, **model.generation_options}
    fields, generation = config_files(config, "float32", options)
    in_halves = dataclasses.replace(config, rope_interleaved=False).to_dict()
    _write_json(folder / CONFIG, {**fields, FORMAT: {**own, "model": in_halves}})
    _write_json(folder / GENERATION, generation)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises FormatError if it is missing, damaged or of another format."""
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise FormatError(f"{path} must be there; got no such file; the checkpoint is not complete") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"{path} must be a whole safetensors file; got {error}; use another checkpoint") from None


def _is_checkpoint(folder: Path) -> bool:
    return any(
        (folder / config).is_file() and (folder / weights).is_file()
        for config, weights in ((CONFIG, WEIGHTS), (adapters.CONFIG, adapters.WEIGHTS))
    )


def _restore(folder: Path) -> None:
    """Put the old checkpoint back if its writer was killed between the two renames."""
    old = _beside(folder, "old")
    if not folder.exists() and _is_checkpoint(old):
        os.replace(old, folder)


def _beside(folder: Path, state: str) -> Path:
    """The name of the new or the old checkpoint while one takes the other's place; hidden, so that it is ours."""
    return folder.parent / f".{folder.name}.{state}"


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    try:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        safetensors.numpy.save_file(contiguous, path, metadata)
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(f"{path} could not be written: {error}; what was there before is untouched") from None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} must hold JSON; got {error}; use another checkpoint") from None


def _flush(folder: Path) -> None:
    """Have the files on the disk before their folder gets its name."""
    for path in folder.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
