"""Conversion of a model to a GGUF file for llama.cpp, or to a folder for transformers.

Weights of memory-mapped files are converted a piece at a time, so little memory is needed whatever their size. The
target is replaced only when the new one is whole.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .adapters import is_adapter
from .atomic import make_parent, real_path
from .checkpoint import load, located
from .config import ModelConfig
from .dialogue import end_ids
from .errors import ConfigError, FormatError
from .formats import open_model, write_gguf, write_huggingface
from .formats.bytes_of_file import mapped_file
from .formats.gguf import OPTIONS
from .formats.huggingface_config import model_type
from .formats.huggingface_export import KINDS_OF_DTYPE, with_begin
from .formats.huggingface_folder import CONFIG
from .formats.model_folder import is_of_a_model, one_at_a_time, restore
from .formats.opened import Weights
from .formats.rows import Progress
from .model import Model
from .packed import Packed
from .parameters import POSITIONS, FileParameters, shapes_of
from .tokenizers import HuggingFaceTokenizer, Tokenizer, tokenizer_to_gguf
from .tokenizers.gguf import ENDS, pre_tokenizer_name
from .tokenizers.huggingface_export import to_huggingface
from .tokenizers.sentencepiece import UNUSED
from .tokenizers.sentencepiece_json import sentencepiece_from_huggingface

GGUF = ".gguf"
GGUF_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
FOLDER_TYPES = {kind: dtype for dtype, kind in KINDS_OF_DTYPE.items()}
ALIASES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}

PAGES_KEPT = 1 << 24  # see _forgetting; the system itself keeps pages until memory is full

BESIDE_A_MODEL = ("README.md", ".gitattributes")  # files that a folder to be replaced may hold beside the model


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model to be converted.

    weights     our names -> float32 array, or Packed as a file stores it
    kinds       the kinds of the matrices, those before an adapter was merged
    nbytes      size of all weights, likewise
    is_merged   whether an adapter was merged
    tokenizer   None: write the model without one
    generation, other_generation  as Model.generation_options and Model.other_generation
    """

    config: ModelConfig
    weights: Weights
    kinds: frozenset[str]
    nbytes: int
    is_merged: bool
    tokenizer: Tokenizer | None
    generation: dict[str, Any]
    other_generation: dict[str, Any]


def source_of(model: Model, tokenizer: Tokenizer | None) -> Source:
    """A model and its tokenizer as a Source. Merges an adapter into the model, in place."""
    weights, is_merged = _weights(model), model.adapter is not None
    kinds, nbytes = _kinds(weights), _nbytes(weights)
    if is_merged:
        model.merge_adapter()
        weights = _weights(model)
    return Source(model.config, weights, kinds, nbytes, is_merged, tokenizer, dict(model.generation_options),
                  dict(model.other_generation))  # fmt: skip


def load_source(path: str | os.PathLike[str], tokenizer: bool = True) -> Source:
    """The Source of a model at a path: anything that fastllm.load opens.

    tokenizer  False: leave it out; then fastllm need not be able to open it, except for a model with an adapter

    Raises as fastllm.load does.
    """
    if not tokenizer and not is_adapter(place := located(path)[0]):
        with contextlib.suppress(FormatError, OSError):  # if load can't open it either, its error is raised
            opened = open_model(place)
            weights = opened.weights
            return Source(opened.config, weights, _kinds(weights), _nbytes(weights), False, None, opened.generation,
                          opened.other_generation)  # fmt: skip
    model, its_tokenizer = load(path, backend="numpy")  # nothing is computed, so nothing is compiled
    return source_of(model, its_tokenizer if tokenizer else None)


def _weights(model: Model) -> Weights:
    parameters = model.parameters
    if not isinstance(parameters, FileParameters):
        return dict(parameters)
    return {
        name: parameters.packed(name) if len(shape) == 2 and name != POSITIONS else parameters[name]
        for name, shape in shapes_of(model.config).items()
    }


def _nbytes(weights: Weights) -> int:
    return sum(weight.nbytes for weight in weights.values())


def _kinds(weights: Weights) -> frozenset[str]:
    matrices = (weight for name, weight in weights.items() if len(weight.shape) == 2 and name != POSITIONS)
    return frozenset(weight.kind.name if isinstance(weight, Packed) else "F32" for weight in matrices)


def names_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a path ends in .gguf, so that a GGUF file is to be written there."""
    return os.fspath(path).lower().endswith(GGUF)


def kind_of(source: Source, target: Path, wanted: str | None) -> str | None:
    """The kind of the matrices in the target. None: in a GGUF file, each matrix keeps its own.

    wanted  the name of a type, or None to choose as `write` describes

    Raises ConfigError for a type that the target can't have.
    """
    is_gguf = names_gguf(target)
    if wanted is not None:
        name = wanted.lower()
        kind = GGUF_TYPES.get(ALIASES.get(name, name))
        if kind is None or not (is_gguf or kind in FOLDER_TYPES):
            known = GGUF_TYPES if is_gguf else FOLDER_TYPES.values()
            raise ConfigError(
                f"the type of a {'GGUF file' if is_gguf else 'folder'} must be one of {', '.join(known)}; "
                f"got {wanted!r}; " + ("choose one of them" if is_gguf else f"name a file that ends in {GGUF}")
            )
        return kind
    given, stays = source.kinds, is_gguf and not source.is_merged
    if len(given) == 1 and given <= FOLDER_TYPES.keys() | ({"Q8_0"} if stays else set()):
        return next(iter(given))
    if stays:
        return None
    return "F32" if given <= FOLDER_TYPES.keys() else "F16"


def write(
    source: Source,
    target: str | os.PathLike[str],
    type: str | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file if the target's name ends in .gguf, else a Hugging Face folder.

    type      of the matrices: f32, f16 or bf16; for a GGUF file also q8_0, q4_0 or q4_1. None: the source's own. Where
              that isn't possible, in a folder or after merging an adapter, f32 for float types that differ, f16 for
              quantised ones
    force     replace an existing file, or the model in an existing folder; its README.md and .gitattributes stay
    progress  called with the bytes of tensors written so far and in total

    Raises ConfigError for a type that the target can't have, FileExistsError for a target that exists and may not be
    replaced, FormatError for a model or tokenizer that its format can't express, OSError where it can't be written.
    """
    path = Path(target).absolute()
    kind = kind_of(source, path, type)
    check_target(target, force)
    progress = _forgetting(source.weights, progress)
    if names_gguf(path):
        metadata = _gguf_metadata(source, path.stem)
        tokens = None if source.tokenizer is None else _gguf_tokenizer(source)
        make_parent(path)
        write_gguf(path, source.config, source.weights, kind, tokens, metadata=metadata, progress=progress)
    else:
        assert kind is not None
        files, begin_id = {}, None
        if source.tokenizer is not None:
            files, begin_id = _tokenizer_files(source.tokenizer), source.tokenizer.bos_id
        write_huggingface(
            path, source.config, source.weights, dtype=FOLDER_TYPES[kind],
            generation={**source.generation, "end_ids": _ends(source)},
            other_generation=with_begin(source.other_generation, begin_id), files=files, replace=force,
            progress=progress,
        )  # fmt: skip
        _warn_of_class(source)


def _forgetting(weights: Weights, progress: Progress | None) -> Progress:
    """A progress callback that also drops the mapped source's pages from memory, every PAGES_KEPT bytes written."""
    arrays = (weight.data if isinstance(weight, Packed) else weight for weight in weights.values())
    maps = {id(file): file for file in map(mapped_file, arrays) if file is not None}
    forgotten = 0

    def report(done: int, total: int) -> None:
        nonlocal forgotten
        if done - forgotten >= PAGES_KEPT and hasattr(mmap, "MADV_DONTNEED"):
            forgotten = done
            for file in maps.values():
                file.madvise(mmap.MADV_DONTNEED)
        if progress is not None:
            progress(done, total)

    return report


def check_target(target: str | os.PathLike[str], force: bool) -> None:
    """Raise FileExistsError if the target exists and may not be replaced."""
    path = Path(target)
    if names_gguf(path):
        if path.is_dir() or (path.exists() and not force):
            what, fix = ("a folder", "choose another name") if path.is_dir() else ("a file", "--force replaces it")
            raise FileExistsError(f"{target} must not exist yet; got {what}; {fix}")
        return
    with one_at_a_time(real_path(path).parent):
        restore(path)
        _check_folder(path, force)


def _check_folder(path: Path, force: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} must be a folder, or end in {GGUF}; got a file; choose another name")
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return
    foreign = [
        name for name in names
        if not (is_of_a_model(path / name) or (name in BESIDE_A_MODEL and (path / name).is_file()))
    ]  # fmt: skip
    if CONFIG not in names or foreign:
        found = f"with {foreign[0]}" if foreign else f"without {CONFIG}"
        raise FileExistsError(
            f"{path} must be new, or hold nothing but a model; got a folder {found}; choose another name"
        )
    if not force:
        raise FileExistsError(f"{path} must not exist yet; got a model's folder; --force replaces it")


# Generation options and tokenizers, in other projects' formats


def _ends(source: Source) -> list[int]:
    """Ids of tokens that end a text: the model's, else the tokenizer's; the tokenizer's end_id first."""
    tokenizer = source.tokenizer
    given = [int(token) for token in source.generation.get("end_ids") or ()]
    if tokenizer is None:
        return given
    return sorted(given or sorted(end_ids(tokenizer)), key=lambda token: token != tokenizer.end_id)


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """tokenizer.json and its companions: name -> content. Raises FormatError where they can't express the tokenizer."""
    try:
        theirs = to_huggingface(tokenizer)
    except ValueError as error:
        raise FormatError(f"{error}; --no-tokenizer writes the model without") from None
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_into(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _warn_of_class(source: Source) -> None:
    """Warn where transformers' AutoTokenizer ignores how tokenizer.json splits text, as it does for Qwen2 models."""
    tokenizer = source.tokenizer
    if tokenizer is None or model_type(source.config) != "qwen2":
        return
    try:
        is_alike = isinstance(tokenizer, HuggingFaceTokenizer) and pre_tokenizer_name(tokenizer) == "qwen2"
    except ValueError:
        is_alike = False
    if not is_alike:
        warnings.warn(
            "for Qwen2 models, transformers' AutoTokenizer splits text as Qwen2 does, whatever the folder says, so it "
            "gives other ids than this tokenizer; PreTrainedTokenizerFast.from_pretrained gives the same",
            stacklevel=3,
        )


def _gguf_metadata(source: Source, name: str) -> dict[str, Any]:
    """The model's name and its sampling options, under their "general.*" keys."""
    options = {key: source.generation.get(option) for option, key in OPTIONS.items()}
    if options["top_k"] is not None:  # int32 in llama.cpp; a top_k above vocab_size means all
        options["top_k"] = np.int32(min(options["top_k"], source.config.vocab_size))
    given = {f"general.sampling.{key}": value for key, value in options.items() if value is not None}
    return {"general.name": name.encode("utf-8", "replace").decode(), **given}


def _gguf_tokenizer(source: Source) -> dict[str, Any]:
    """The tokenizer's metadata, with a token for each row of the model's embedding, as llama.cpp requires."""
    tokenizer = source.tokenizer
    assert tokenizer is not None
    try:
        metadata = tokenizer_to_gguf(_as_sentencepiece(tokenizer))
    except ValueError as error:
        raise FormatError(f"{error}; --no-tokenizer writes the model without") from None
    prefix = "tokenizer.ggml."
    tokens, missing = list(metadata[f"{prefix}tokens"]), source.config.vocab_size - tokenizer.vocab_size
    taken = set(tokens)
    for i in range(len(tokens), len(tokens) + missing):
        token = next(text for text in (f"[PAD{i}{'_' * more}]" for more in range(len(taken) + 1)) if text not in taken)
        tokens.append(token)
        taken.add(token)
    metadata[f"{prefix}tokens"] = tokens
    types = np.asarray(metadata[f"{prefix}token_type"], np.int32)
    metadata[f"{prefix}token_type"] = np.append(types, np.full(missing, UNUSED, np.int32))
    if f"{prefix}scores" in metadata:
        scores = np.asarray(metadata[f"{prefix}scores"], np.float32)
        metadata[f"{prefix}scores"] = np.append(scores, np.full(missing, -1000, np.float32))
    # Readers know other ends of an answer by their texts (ENDS); these keys are for the rest. Only control tokens: a
    # damaged configuration may list ordinary ones.
    known = {tokenizer.end_id, *(i for i in tokenizer.control_ids if tokens[i] in ENDS)}
    others = [i for i in _ends(source) if i in tokenizer.control_ids - known]
    for key, token_id in zip(("eot", "eom"), others, strict=False):
        metadata[f"{prefix}{key}_token_id"] = token_id
    for key, name in (("bos", "bos_token_id"), ("padding", "pad_token_id")):  # llama.cpp has defaults
        if name in source.other_generation:
            metadata.setdefault(f"{prefix}{key}_token_id", source.other_generation[name])
    return metadata


def _as_sentencepiece(tokenizer: Tokenizer) -> Tokenizer:
    """A Hugging Face tokenizer with byte fallback as a SentencePieceTokenizer; any other unchanged."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.document["model"].get("byte_fallback"):
        return sentencepiece_from_huggingface(tokenizer)
    return tokenizer


def size_of(path: str | os.PathLike[str]) -> int:
    """Size in bytes of a file, or of the safetensors files in a folder."""
    path = Path(path)
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
