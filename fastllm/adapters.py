"""Low-rank adapters (LoRA), read and written in PEFT's file format (github.com/huggingface/peft).

    adapter_config.json          {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": [...], ...}
    adapter_model.safetensors    base_model.model.<module>.lora_A.weight (R, I) and .lora_B.weight (O, R)

A module is a linear map of the base model, under its name in transformers, or under ours if transformers doesn't have
the architecture. B @ A is scaled by alpha / R, or alpha / sqrt(R) with use_rslora; alpha_pattern gives some modules an
alpha of their own.

GPT-2 has query, key and value in one module, c_attn. When an adapter of c_attn is read, each of the three gets the
whole A and its own rows of B; but if every column of B is nonzero for only one of them, each gets only its columns of B
and their rows of A. When it is written, the As are stacked and B is block-diagonal, so that R is the sum of their
ranks: the product is the same.

PEFT's rows of B are laid out for RoPE on the halves of a head, as in transformers. The rows of queries and keys are
reordered for a model of ours with RoPE on pairs (see formats/rows.py).
"""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .atomic import replacing
from .config import ModelConfig
from .errors import FormatError
from .formats.bytes_of_file import naming
from .formats.huggingface import MODULES
from .formats.huggingface_config import model_type
from .formats.huggingface_folder import holds_a_model, stored_array
from .formats.opened import float32
from .formats.peft import CONFIG, WEIGHTS, Rules
from .formats.rows import row_order
from .formats.safetensors_file import array_to_write, read_metadata, read_safetensors, write_safetensors
from .hub import download, is_hub_name
from .lora import AdapterParameters, Addition, linear_maps
from .model import Model
from .packed import Packed
from .parameters import shapes_of
from .quantize import dequantize
from .small_files import brief, read_json

BASE = "fastllm.base"  # metadata key: checksum_of the base model that an adapter was trained with
PICKLE = "adapter_model.bin"
PUT_BACK = "put that back as it was, or start a new run"
OUTSIDE = frozenset(("lm_head", "embed_tokens", "wte", "wpe"))  # modules outside the blocks
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
Arrays = dict[str, NDArray[np.float32]]


class Place(NamedTuple):
    """A linear map of the base model in transformers, and those of ours that it holds, stacked along the outputs."""

    theirs: str
    ours: tuple[str, ...]
    is_transposed: bool


def save_adapter(folder: str | os.PathLike[str], model: Model, base: str | os.PathLike[str] | None = None) -> None:
    """Write a model's adapter as adapter_config.json and adapter_model.safetensors, which PEFT opens.

    folder  created if need be; an adapter in it is replaced
    base    name of the base model to put in the files: a path, or a name on the Hugging Face hub. None: what
            fastllm.load opened the model from, if it did

    Raises ValueError for a model without an adapter, for an adapter that isn't finite, and for a folder with a model,
    which the adapter would hide; OSError where the folder can't be written.
    """
    if model.adapter is None:
        raise ValueError("save_adapter needs a model with an adapter; got one without; add_lora and train it first")
    model.adapter.check_finite()
    folder = Path(folder)
    name = model.origin if base is None else os.fspath(base)
    if any(holds_a_model(place) for place in (folder, folder / "checkpoint")):
        raise ValueError(f"an adapter needs a folder of its own; got {folder}, which holds a model; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    if name is not None and not os.path.exists(folder / name) and os.path.exists(name):
        name = os.path.abspath(name)
    with model._lock:  # so that all of it is of the same update while another thread trains
        write_adapter(folder, model.config, model.adapter, name, checksum_of(model))


def load_adapter(model: Model, folder: str | os.PathLike[str]) -> AdapterParameters:
    """Read an adapter that PEFT or save_adapter wrote, and set it: the model computes with it from then on.

    folder  holds the two files; or a run folder, or a name on the Hugging Face hub

    Returns the adapter's parameters, which can be trained further. Raises FileNotFoundError; FormatError for files
    that are damaged, of another model, or of a kind that fastllm lacks; FastllmError where a name can't be downloaded.
    Warns if the adapter was trained on other weights than this model's, where its files tell.
    """
    path = Path(folder)
    if not path.exists() and is_hub_name(os.fspath(folder)):
        path = download(os.fspath(folder))
    if not is_adapter(path) and is_adapter(path / "checkpoint"):
        path = path / "checkpoint"
    adapter = read_adapter(model.config, path)
    if not is_of(path, model):
        warnings.warn(
            f"{folder}: the adapter was trained on other weights than this model's. It suits this model if they "
            "are the same in another precision; if not, load the model that it was trained on, or train it again",
            stacklevel=2,
        )
    model.set_adapter(adapter)
    return adapter


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter_config.json."""
    return (folder / CONFIG).is_file()


def base_name(folder: Path) -> str:
    """The base model that an adapter's files name: a path or a name on the hub.

    Raises FormatError where they name none.
    """
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise FormatError(
            f"{folder / CONFIG} must name its base model in base_model_name_or_path; got {brief(name)}; open that "
            "model and load_adapter(model, folder)"
        )
    return name


# Reading


def read_adapter(
    config: ModelConfig, folder: Path, additions: Mapping[str, Addition] | None = None
) -> AdapterParameters:
    """The adapter in a folder, for a model of this configuration.

    additions  ranks and scales that it must have, those with which write_adapter wrote it: then the numbers come back
               bit for bit, also from GPT-2's c_attn. None: as the files say

    Raises FileNotFoundError, FormatError.
    """
    if not is_adapter(folder):
        if not folder.exists():
            raise FileNotFoundError(f"there must be an adapter's folder at {folder}; got nothing; check the name")
        raise FormatError(f"{folder} must hold an adapter, with {CONFIG}; got none; name another folder")
    with naming(folder):
        rules = Rules(read_json(folder / CONFIG))
        found: dict[str, Addition] = {}
        arrays: Arrays = {}
        for place, name, a, b in _pairs(config, folder):
            addition = rules.addition(name, len(a))
            given = None if additions is None else [(ours, additions[ours]) for ours in place.ours if ours in additions]
            parts = _split(config, place, a, b, given)
            if given and not math.isclose(addition.scale, given[0][1].scale, rel_tol=1e-5):
                raise FormatError(
                    f"{name} must have the scale {given[0][1].scale:g}, by the job's [lora]; got {addition.scale:g}; "
                    f"{PUT_BACK}"
                )
            for ours, a_part, b_part in parts:
                found[ours] = Addition(len(a_part), addition.scale) if additions is None else additions[ours]
                arrays[f"{ours}.lora_a"], arrays[f"{ours}.lora_b"] = a_part, b_part
        if additions is not None and found.keys() != additions.keys():
            missing = [name for name in additions if name not in found]
            raise FormatError(
                f"an adapter must have the maps of the job's [lora]; got none for {missing[:3]}; {PUT_BACK}"
            )
    adapter = AdapterParameters(config, {name: found[name] for name in linear_maps(config) if name in found})
    for name, view in adapter.items():
        view[...] = arrays[name]
    return adapter


def _places(config: ModelConfig) -> list[Place]:
    """The modules of transformers that hold the linear maps in a model's blocks."""
    maps = linear_maps(config)
    try:
        modules = MODULES[model_type(config)]
    except FormatError:
        return [Place(name, (name,), False) for name in maps]
    return [
        Place(module.theirs.format(layer), tuple(name.format(layer) for name in module.ours), module.transposed)
        for layer in range(config.layers)
        for module in modules
        if "{}" in module.theirs and module.ours[0].format(layer) in maps
    ]


def _pairs(config: ModelConfig, folder: Path) -> list[tuple[Place, str, NDArray[np.float32], NDArray[np.float32]]]:
    """Each module in the file: its place, its name in the file, A (R, I) and B (O, R)."""
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).is_file():
            raise FormatError(
                f"{folder} must hold {WEIGHTS}; got {PICKLE}, a pickle, which runs code when it is opened; save the "
                "adapter as safetensors"
            )
        raise FormatError(f"{folder} must hold {WEIGHTS}; got no such file; copy it too")
    places = {place.theirs: place for place in _places(config)}
    stored = read_safetensors(folder / WEIGHTS)
    body = next(iter(places)).partition(".")[0] + "."
    # An adapter of a model without head (AutoModel) lacks "model." or "transformer." before its modules.
    has_body = any(name.startswith(PREFIX + body) for name in stored)
    pairs: dict[str, dict[str, NDArray[np.float32]]] = {}
    for tensor_name in stored:
        name, part = next(
            ((tensor_name.removesuffix(part), part) for part in (A, B) if tensor_name.endswith(part)), ("", "")
        )
        module = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or (module if has_body else body + module) not in places:
            if any(part in OUTSIDE for part in tensor_name.split(".")):
                raise FormatError(
                    f"an adapter must add to linear maps in the model's blocks; got {brief(tensor_name)} too, of the "
                    "embedding or head; merge the adapter with PEFT and open the model"
                )
            raise FormatError(
                f"an adapter must have lora_A and lora_B of linear maps in the model's blocks, such as "
                f"{PREFIX}{next(iter(places))}{A}; got {brief(tensor_name)}; use an adapter made for this model"
            )
        array = float32(stored_array(tensor_name, stored[tensor_name]))
        if not np.isfinite(array).all():
            raise FormatError(f"{tensor_name} must be finite; got NaN or infinity; use another adapter")
        pairs.setdefault(module, {})[part] = array
    if not pairs:
        raise FormatError("an adapter must have lora_A and lora_B of at least one module; got none; use another one")
    maps, found = linear_maps(config), []
    for module, arrays in pairs.items():
        place = places[module if has_body else body + module]
        outputs, inputs = sum(maps[name][0] for name in place.ours), maps[place.ours[0]][1]
        shapes = [arrays[part].shape if part in arrays else None for part in (A, B)]
        rank = shapes[0][0] if shapes[0] else 0
        if shapes != [(rank, inputs), (outputs, rank)] or rank < 1:
            raise FormatError(
                f"{module} must have lora_A of shape (R, {inputs}) and lora_B of ({outputs}, R); got {shapes[0]} and "
                f"{shapes[1]}; use an adapter made for this model"
            )
        found.append((place, module, arrays[A], arrays[B]))
    return found


def _split(
    config: ModelConfig,
    place: Place,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    given: list[tuple[str, Addition]] | None,
) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Our maps in a module, with their parts of A and B.

    given  our maps that the file was written from, with ranks; None: not known
    """
    maps = linear_maps(config)
    ends = np.cumsum([maps[name][0] for name in place.ours])
    rows = dict(zip(place.ours, np.split(b, ends[:-1]), strict=True))
    if given is not None:
        ranks = [addition.rank for _, addition in given]
        if sum(ranks) != len(a):
            rule = f"be of rank {sum(ranks)}" if given else "have no addition"
            raise FormatError(f"{place.theirs} must {rule}, by the job's [lora]; got one of rank {len(a)}; {PUT_BACK}")
        begins = np.cumsum([0, *ranks])
        columns = {name: np.arange(begins[i], begins[i + 1]) for i, (name, _) in enumerate(given)}
    else:
        reaches = np.array([part.any(axis=0) for part in rows.values()])  # (maps, R): where a column isn't zero
        columns = {name: np.arange(len(a)) for name in place.ours}
        if len(place.ours) > 1 and (reaches.sum(axis=0) == 1).all():
            columns = {name: np.flatnonzero(row) for name, row in zip(place.ours, reaches, strict=True) if row.any()}
    return [(name, a[chosen], _in_pairs(config, name, rows[name][:, chosen])) for name, chosen in columns.items()]


def _halves(config: ModelConfig, name: str, rows: int) -> NDArray[np.intp] | None:
    """The row of our B for each row of theirs; None if the order is the same."""
    try:
        model_type(config)
    except FormatError:
        return None
    return row_order(config, f"{name}.weight", rows, interleaved=False)


def _in_pairs(config: ModelConfig, name: str, b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Their B with its rows in our order."""
    order = _halves(config, name, len(b))
    return b if order is None else b[np.argsort(order)]


# Writing


def write_adapter(
    folder: Path, config: ModelConfig, adapter: AdapterParameters, base: str | None, checksum: int | None = None
) -> None:
    """Write the two files into a folder, each whole or not at all.

    base      name of the base model to put in the config
    checksum  checksum_of the base model, kept in the metadata of the weights
    """
    places = _places(config)
    stacked = {
        place.theirs: _stacked(config, place, adapter)
        for place in places
        if any(name in adapter.additions for name in place.ours)
    }
    additions = {theirs: Addition(len(a), scale) for theirs, (a, _, scale) in stacked.items()}
    fields = _config(places, additions, base)
    tensors = []
    for theirs, (a, b, _) in stacked.items():
        for part, array in ((A, a), (B, b)):
            tensors.append(array_to_write(f"{PREFIX}{theirs}{part}", "F32", np.asarray(array, np.float32)))
    with replacing(folder / CONFIG) as config_file, replacing(folder / WEIGHTS) as weights_file:
        config_file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        write_safetensors(weights_file, tensors, metadata=None if checksum is None else {BASE: str(checksum)})


def checksum_of(model: Model) -> int:
    """A checksum (CRC-32) of the first, middle and last row of each parameter, as float32: it identifies the model."""
    checksum = 0
    for name, shape in shapes_of(model.config).items():
        some = [0, shape[0] // 2, shape[0] - 1]
        if len(shape) == 2:
            matrix = model.parameters.packed(name)
            rows = dequantize(Packed(matrix.data[some], matrix.kind))
        else:
            rows = model.parameters[name][some]
        checksum = zlib.crc32(np.ascontiguousarray(rows, np.float32).tobytes(), checksum)
    return checksum


def is_of(folder: Path, model: Model) -> bool:
    """Whether the adapter in a folder was trained with this very model; True if its files don't say."""
    return read_metadata(folder / WEIGHTS).get(BASE) in (None, str(checksum_of(model)))


def _stacked(
    config: ModelConfig, place: Place, adapter: AdapterParameters
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """A, B and scale of a module in the file."""
    maps = linear_maps(config)
    parts = [(name, adapter.additions[name]) for name in place.ours if name in adapter.additions]
    rank, scale = sum(addition.rank for _, addition in parts), parts[0][1].scale
    a = np.concatenate([adapter[f"{name}.lora_a"] for name, _ in parts])
    b = np.zeros((sum(maps[name][0] for name in place.ours), rank), np.float32)
    first = 0
    for name, addition in parts:
        row = sum(maps[other][0] for other in place.ours[: place.ours.index(name)])
        block = adapter[f"{name}.lora_b"]
        order = _halves(config, name, len(block))
        b[row : row + len(block), first : first + addition.rank] = (block if order is None else block[order]) * (
            np.float32(addition.scale / scale)
        )
        first += addition.rank
    return a, b, scale


def _config(places: list[Place], additions: Mapping[str, Addition], base: str | None) -> dict[str, Any]:
    """The content of adapter_config.json. additions: by the names of modules in the file."""
    rank = Counter(addition.rank for addition in additions.values()).most_common(1)[0][0]
    alphas = {name: _alpha(addition) for name, addition in additions.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: addition.rank for name, addition in additions.items() if addition.rank != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "target_modules": _targets(places, additions),
        "layers_to_transform": None,
        "layers_pattern": None,
        "fan_in_fan_out": any(place.is_transposed for place in places),
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _alpha(addition: Addition) -> float:
    """The alpha for which alpha / rank == scale, in floating point too if there is one; an int if it is whole."""
    alpha = addition.scale * addition.rank  # rounded to the nearest: if any number gives the scale back, this one does
    return int(alpha) if alpha.is_integer() else alpha


def _targets(places: list[Place], additions: Mapping[str, Addition]) -> list[str]:
    """target_modules: ends of names ("q_proj") if all layers have the same modules, else whole names."""

    def end(theirs: str) -> str:
        """What follows the layer's number, such as self_attn.q_proj."""
        parts = theirs.split(".")
        return ".".join(parts[next(i for i, part in enumerate(parts) if part.isdecimal()) + 1 :])

    chosen = {end(theirs) for theirs in additions}
    if {place.theirs for place in places if end(place.theirs) in chosen} != additions.keys():
        return [*additions]
    last = Counter(name.rpartition(".")[2] for name in {end(place.theirs) for place in places})
    return sorted(short if last[short := name.rpartition(".")[2]] == 1 else name for name in chosen)
