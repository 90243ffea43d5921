"""A checkpoint is a folder: model.safetensors, config.json, tokenizer.json, and for going on with training
optimizer.safetensors and progress.json.

It is written whole beside the old one and then takes its place, so that at any moment one of the two is
complete: `.checkpoint.new` becomes `checkpoint` after that has become `.checkpoint.old`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from .config import ModelConfig
from .errors import ConfigError, FormatError
from .model import Model
from .optimizers import Optimizer
from .parameters import check_shapes, parameter_shapes
from .tokenizers import load_tokenizer
from .tokenizers.base import Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"
FORMAT, VERSION = "fastllm", 1


def save(
    directory: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, in one step from a reader's view.

    optimizer, progress  kept with it, to go on with training later
    Raises OSError if the disk is full or the folder can't be written; what was there stays.
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
        _write_arrays(new / WEIGHTS, model.parameters)
        _write_json(new / CONFIG, {"format": FORMAT, "version": VERSION, "model": model.config.to_dict()})
        tokenizer.save(new / TOKENIZER)
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
    """The model and tokenizer of a checkpoint folder, or of a run folder that has one.

    Raises FileNotFoundError, or FormatError for a file that is damaged or not a checkpoint's.
    """
    folder = find_checkpoint(path)
    fields = _read_json(folder / CONFIG)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT or not isinstance(fields.get("model"), dict):
        raise FormatError(f"{folder / CONFIG} must be a fastllm checkpoint's; got another format; name a folder that "
                          "`fastllm train` or fastllm.save wrote")  # fmt: skip
    if fields.get("version") != VERSION:
        raise FormatError(
            f"{folder / CONFIG} must be of version {VERSION}; got {fields.get('version')!r:.40}; update fastllm"
        )
    try:
        config = ModelConfig.from_dict(fields["model"])
    except ConfigError as error:
        raise FormatError(f"{folder / CONFIG}: {error}") from None
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.vocab_size != config.vocab_size:
        raise FormatError(
            f"{folder}: tokenizer and model must have one vocabulary; got {tokenizer.vocab_size} tokens and "
            f"vocab_size {config.vocab_size}; the files are of two checkpoints"
        )
    arrays = read_arrays(folder / WEIGHTS)
    try:
        # Before memory is taken for what may be a damaged configuration.
        if config.layers > len(arrays):
            raise ValueError(
                f"{config.layers} layers have more parameters than the {len(arrays)} here; use another checkpoint"
            )
        decayed, others = parameter_shapes(config)
        check_shapes(decayed | others, arrays)
        model = Model(config, backend=backend)
        model.unfreeze().load(arrays)
    except ValueError as error:
        raise FormatError(f"{folder / WEIGHTS}: {error}") from None
    return model, tokenizer


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
    given = Path(path)
    for folder in (given, given / "checkpoint"):
        _restore(folder)
        if _is_checkpoint(folder):
            return folder
    if not given.exists():
        raise FileNotFoundError(f"there must be a checkpoint or run folder at {path}; got nothing; check the name")
    raise FormatError(
        f"{path} must hold {CONFIG} and {WEIGHTS}, or a checkpoint folder; got neither; "
        "name a folder that `fastllm train` or fastllm.save wrote"
    )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises FormatError if it is missing, damaged or of another format."""
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise FormatError(f"{path} must be there; got no such file; the checkpoint is not complete") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"{path} must be a whole safetensors file; got {error}; use another checkpoint") from None


def _is_checkpoint(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _restore(folder: Path) -> None:
    """Put the old checkpoint back if its writer was killed between the two renames."""
    old = _beside(folder, "old")
    if not folder.exists() and _is_checkpoint(old):
        os.replace(old, folder)


def _beside(folder: Path, state: str) -> Path:
    """The name of the new or the old checkpoint while one takes the other's place; hidden, so that it is ours."""
    return folder.parent / f".{folder.name}.{state}"


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
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
