"""Low-rank adapters in the files of PEFT (github.com/huggingface/peft), both ways.

    adapter_config.json          {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": [...], ...}
    adapter_model.safetensors    base_model.model.<module>.lora_A.weight (R, I) and .lora_B.weight (O, R)

A module is a linear map of the base model by its name in transformers; where that has no name for a model, by ours.
What it adds counts alpha / R times, or alpha / sqrt(R) with use_rslora. Alphas of some modules are in alpha_pattern.

GPT-2 has query, key and value in one module, c_attn. Of an adapter to that, each of the three gets the whole A and its
rows of B; where a column of B reaches one of them only, it and its row of A go to that one alone. The other way, the As
stand one below another and B has blocks along its diagonal, so R is the sum of theirs: the product is the same.

PEFT's rows of B are for RoPE on the halves of a head, as transformers has it. Those of queries and keys change places
for a model of ours that has it on pairs (see formats/rows.py).
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
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
from .formats.safetensors_file import TensorToWrite, read_metadata, read_safetensors, write_safetensors
from .hub import download, is_hub_name
from .lora import AdapterParameters, Addition, linear_maps
from .model import Model
from .packed import Packed
from .parameters import shapes_of
from .quantize import dequantize
from .small_files import brief, read_json

BASE = "fastllm.base"  # a checksum of what an adapter was trained beside
PICKLE = "adapter_model.bin"
OUTSIDE = frozenset(("lm_head", "embed_tokens", "wte", "wpe"))  # of the blocks
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
Arrays = dict[str, NDArray[np.float32]]


class Place(NamedTuple):
    """A linear map of theirs, and ours that it holds, stacked along the outputs."""

    theirs: str
    ours: tuple[str, ...]
    is_transposed: bool


def save_adapter(folder: str | os.PathLike[str], model: Model, base: str | os.PathLike[str] | None = None) -> None:
    """Write a model's adapter as PEFT's adapter_config.json and adapter_model.safetensors, which PEFT opens.

    folder  made where it is not there; the two files take the place of such that are
    base    the model that it adds to, which the files name: a path, or a name on Hugging Face's hub. None: what
            fastllm.load opened it from, if it did

    Raises ValueError for a model without an adapter, for one that isn't finite and for a folder with a model, which an
    adapter would hide, OSError where the folder can't be written.
    """
    if model.adapter is None:
        raise ValueError("save_adapter needs a model with an adapter; got one without; add_lora and train it before")
    model.adapter.check_finite()
    folder = Path(folder)
    name = model.origin if base is None else os.fspath(base)
    if any(holds_a_model(place) for place in (folder, folder / "checkpoint")):
        raise ValueError(f"an adapter needs a folder of its own; got {folder}, a model's; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    if name is not None and not os.path.exists(folder / name) and os.path.exists(name):
        name = os.path.abspath(name)
    with model._lock:  # while a thread trains it, the adapter is that between two updates
        write_adapter(folder, model.config, model.adapter, name, checksum_of(model))


def load_adapter(model: Model, folder: str | os.PathLike[str]) -> AdapterParameters:
    """Read an adapter of PEFT's or of save_adapter's, and set it: the model computes with it from then on.

    folder  of the two files; a run folder; or a name on Hugging Face's hub

    Returns its parameters, which can be trained on. Raises FileNotFoundError; FormatError for files that are damaged,
    of another model, or of a kind that fastllm lacks; FastllmError where a name can't be fetched.
    """
    path = Path(folder)
    if not path.exists() and is_hub_name(os.fspath(folder)):
        path = download(os.fspath(folder))
    if not is_adapter(path) and is_adapter(path / "checkpoint"):
        path = path / "checkpoint"
    adapter = read_adapter(model.config, path)
    model.set_adapter(adapter)
    return adapter


def is_adapter(folder: Path) -> bool:
    """Whether a folder says that it holds an adapter."""
    return (folder / CONFIG).is_file()


def base_name(folder: Path) -> str:
    """The model that the adapter in a folder adds to, as its files name it: a path or a name on the hub.

    Raises FormatError where they name none.
    """
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise FormatError(
            f"{folder / CONFIG} must name the model it adds to, in base_model_name_or_path; got {brief(name)}; open "
            "that model and load_adapter(model, folder)"
        )
    return name


# Reading


def read_adapter(
    config: ModelConfig, folder: Path, additions: Mapping[str, Addition] | None = None
) -> AdapterParameters:
    """The adapter in a folder, for a model.

    additions  what it must add, as write_adapter was given it: then the numbers come back to the bit. None: whatever
               the files say

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
                    f"{name} must have the scale {given[0][1].scale:g}, by the job's alpha; got {addition.scale:g}; "
                    "start anew"
                )
            for ours, a_part, b_part in parts:
                found[ours] = Addition(len(a_part), addition.scale) if additions is None else additions[ours]
                arrays[f"{ours}.lora_a"], arrays[f"{ours}.lora_b"] = a_part, b_part
        if additions is not None and found.keys() != additions.keys():
            missing = [name for name in additions if name not in found]
            raise FormatError(f"an adapter must add to what the job says; got nothing for {missing[:3]}; start anew")
    adapter = AdapterParameters(config, {name: found[name] for name in linear_maps(config) if name in found})
    for name, view in adapter.items():
        view[...] = arrays[name]
    return adapter


def _places(config: ModelConfig) -> list[Place]:
    """Where theirs have the linear maps of a model's blocks."""
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
    """Each module in the file: its place, its name there, A (R, I) and B (O, R)."""
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).is_file():
            raise FormatError(
                f"{folder} must hold {WEIGHTS}; got {PICKLE}, a pickle, which runs code of its author's when it is "
                "opened; use the safetensors"
            )
        raise FormatError(f"{folder} must hold {WEIGHTS}; got no such file; copy it too")
    places = {place.theirs: place for place in _places(config)}
    stored = read_safetensors(folder / WEIGHTS)
    body = next(iter(places)).partition(".")[0] + "."
    # A model without head has no "model." or "transformer." before its modules.
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
                    f"an adapter must add to linear maps in the model's blocks; got {brief(tensor_name)} too, of its "
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
        raise FormatError("an adapter must have lora_A and lora_B of at least one module; got none; use another")
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

    given  those that _stacked was given; None: not known
    """
    maps = linear_maps(config)
    ends = np.cumsum([maps[name][0] for name in place.ours])
    rows = dict(zip(place.ours, np.split(b, ends[:-1]), strict=True))
    if given is not None:
        ranks = [addition.rank for _, addition in given]
        if sum(ranks) != len(a):
            raise FormatError(f"{place.theirs} must be of rank {sum(ranks)}, by the job; got {len(a)}; start anew")
        begins = np.cumsum([0, *ranks])
        columns = {name: np.arange(begins[i], begins[i + 1]) for i, (name, _) in enumerate(given)}
    else:
        reaches = np.array([part.any(axis=0) for part in rows.values()])  # (maps, R)
        columns = {name: np.arange(len(a)) for name in place.ours}
        if len(place.ours) > 1 and (reaches.sum(axis=0) == 1).all():
            columns = {name: np.flatnonzero(row) for name, row in zip(place.ours, reaches, strict=True) if row.any()}
    return [(name, a[chosen], _in_pairs(config, name, rows[name][:, chosen])) for name, chosen in columns.items()]


def _halves(config: ModelConfig, name: str, rows: int) -> NDArray[np.intp] | None:
    """Which row of our B stands at each place of theirs; None where all stay."""
    try:
        model_type(config)
    except FormatError:
        return None
    return row_order(config, f"{name}.weight", rows, interleaved=False)


def _in_pairs(config: ModelConfig, name: str, b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Our B from theirs."""
    order = _halves(config, name, len(b))
    return b if order is None else b[np.argsort(order)]


# Writing


def write_adapter(
    folder: Path, config: ModelConfig, adapter: AdapterParameters, base: str | None, checksum: int | None = None
) -> None:
    """Write the two files into a folder, each whole or not at all.

    base      what they name as the model
    checksum  of that as it is now
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
            data = np.ascontiguousarray(array, np.float32)
            tensors.append(TensorToWrite(f"{PREFIX}{theirs}{part}", "F32", data.shape, partial(_bytes, data)))
    with replacing(folder / CONFIG) as config_file, replacing(folder / WEIGHTS) as weights_file:
        config_file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        write_safetensors(weights_file, tensors, metadata=None if checksum is None else {BASE: str(checksum)})


def checksum_of(model: Model) -> int:
    """Of some rows of each parameter, as float32, which tell a model from another without reading it all."""
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
    """Whether the adapter in a folder was trained beside this very model, as far as its files tell."""
    return read_metadata(folder / WEIGHTS).get(BASE) in (None, str(checksum_of(model)))


def _bytes(array: NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
    yield array.view(np.uint8)


def _stacked(
    config: ModelConfig, place: Place, adapter: AdapterParameters
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """A, B and scale of a module of theirs."""
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
    """adapter_config.json. additions: by their modules."""
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
    """The alpha that, divided by the rank, is the scale."""
    alpha = addition.scale * addition.rank
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, 0))
    alpha = next((value for value in near if value / addition.rank == addition.scale), alpha)
    return int(alpha) if alpha.is_integer() else alpha


def _targets(places: list[Place], additions: Mapping[str, Addition]) -> list[str]:
    """Modules by the ends of their names where all layers have the same, else by whole names."""

    def end(theirs: str) -> str:
        """What follows the layer's number: self_attn.q_proj."""
        parts = theirs.split(".")
        return ".".join(parts[next(i for i, part in enumerate(parts) if part.isdecimal()) + 1 :])

    chosen = {end(theirs) for theirs in additions}
    if {place.theirs for place in places if end(place.theirs) in chosen} != additions.keys():
        return [*additions]
    last = Counter(name.rpartition(".")[2] for name in {end(place.theirs) for place in places})
    return sorted(short if last[short := name.rpartition(".")[2]] == 1 else name for name in chosen)
