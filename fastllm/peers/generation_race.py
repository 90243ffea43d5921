"""The race of generators: a model's files are written, the contenders checked against fastllm, then timed in turns."""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import ModelConfig, preset
from ..conversion import load_source, size_of
from ..errors import FormatError
from ..formats import open_model, write_gguf, write_huggingface
from ..formats.bytes_of_file import map_file
from ..parameters import Parameters, initialise
from .generation import GENERATORS, NEEDS, PACKAGES, SEED, GenerationCase
from .race import PAUSE, PeerError, Worker, in_turn, threads_of_processes, warm_up

KINDS = ("F32", "F16", "Q8_0", "Q4_0")
QUICK_KINDS = ("F32", "Q4_0")
BASE = "F32.gguf"
# Errors relative to the largest logit after the prompt. transformers computes the same in float32. llama.cpp has keys
# and values in float16 and, with F16, Q8_0 and Q4_0, activations in float16 or blocks of 8 bits. This causes errors of
# 5e-4, with blocks 2e-2, for random and real models.
TOLERANCES = {
    "transformers": dict.fromkeys(KINDS, 1e-3),
    "llama.cpp": {"F32": 2e-3, "F16": 2e-3, "Q8_0": 6e-2, "Q4_0": 6e-2},
}


@dataclass(frozen=True)
class Rounds:
    """Number of rounds for each measurement."""

    decoding: int = 15
    reading: int = 7
    together: int = 5


FULL, QUICK = Rounds(), Rounds(2, 2, 2)


@dataclass
class Outcome:
    """One contender on one kind of file.

    case              its model file and numbers of tokens
    error             of the logits after the prompt, relative to the largest; None for the first contender
    load_seconds      from the start of its process to the first logits: imports, kernels from disk, loading
    decoding          seconds per token, a figure for each round
    reading           seconds for the long prompt, a figure for each round
    alone, together   fastllm only: seconds per step of one text, and of several side by side, a figure for each round
    memory            bytes: peak, cache, file
    """

    kind: str
    contender: str
    case: GenerationCase
    error: float | None = None
    load_seconds: float = 0.0
    decoding: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)


def random_config() -> ModelConfig:
    """A Llama-style model of 110 million parameters."""
    return preset(
        "llama", vocab_size=32000, width=768, hidden=2048, layers=12, heads=12, kv_heads=12, context=1024,
        rope_interleaved=True, tied_head=True,
    )  # fmt: skip


def installed() -> tuple[list[str], list[str]]:
    """The contenders that can run here, and for each of the others a line that says what it needs."""
    names, missing = [], []
    for name in GENERATORS:
        if all(importlib.util.find_spec(package) for package in NEEDS.get(name, ())):
            names.append(name)
        else:
            missing.append(f"{name} is not installed, so its rows are left out: pip install {PACKAGES[name]}")
    return names, missing


def case_of(config: ModelConfig, path: Path, quick: bool, cache_dtype: str = "float32") -> GenerationCase:
    """The case for a model: the usual numbers of tokens, or as many as its context has room for."""
    context = min(1024, config.context)
    new = max(1, min(8 if quick else 64, context // 4))
    if context < 2:
        raise FormatError(f"a model must have a context of 2 tokens or more to decode; got {context}; use another")
    return GenerationCase(
        str(path), config.vocab_size, context, prompt=min(128, context - new), new=new, read=min(512, context),
        cache_dtype=cache_dtype,
    )  # fmt: skip


def write_base(model: str | None, folder: Path) -> ModelConfig:
    """Write the model, or a random one, in float32 to the file from which `races` makes all others."""
    path = folder / BASE
    if model is not None:
        source = load_source(model, tokenizer=False)
        write_gguf(path, source.config, source.weights, "F32")
    else:
        config = random_config()
        parameters = Parameters(config)
        initialise(parameters, config, SEED)
        write_gguf(path, config, parameters, "F32")
    return open_model(path).config


def races(
    folder: Path, threads: int, quick: bool, cache_dtype: str, failed: dict[str, str], note: Callable[[str], object]
) -> Iterator[list[Outcome]]:
    """Race on each kind of file in turn; yields the outcomes of each.

    folder  where write_base has written its file; gets the others, too
    cache_dtype  number type of fastllm's KV cache
    failed  gets the reason for each kind that was not timed
    note    called with a line about whatever is left out
    """
    names, missing = installed()
    for line in missing:
        note(line)
    base = folder / BASE
    config = open_model(base).config
    for kind in QUICK_KINDS if quick else KINDS:
        path = folder / f"{kind}.gguf"
        if path != base:
            write_gguf(path, config, open_model(base).weights, kind)
        theirs = folder / f"{kind}-theirs"
        contenders = list(names)
        if "transformers" in contenders:
            try:
                _write_theirs(theirs, path)
            except FormatError as error:
                contenders.remove("transformers")
                note(f"{kind}: transformers has no name for the model, so its row is left out: {error}")
        cases = {
            name: case_of(config, theirs if name == "transformers" else path, quick, cache_dtype) for name in contenders
        }
        for file in [path, *theirs.glob("*.safetensors")]:
            read_anew(file)
        try:
            yield _race(kind, cases, threads, QUICK if quick else FULL)
        except PeerError as error:
            failed[kind] = str(error)
        finally:
            shutil.rmtree(theirs, ignore_errors=True)
            if path != base:
                path.unlink()


def _write_theirs(folder: Path, path: Path) -> None:
    """Write a GGUF file's model for transformers, in float32. Raises FormatError if transformers has no name for it."""
    opened = open_model(path)
    write_huggingface(folder, opened.config, opened.weights, dtype="float32")


def read_anew(path: Path) -> None:
    """Drop a newly written file from the system's page cache and read it from disk, as would happen on another day.

    Linux caches a file in small pages when it is written, but, if the file system supports it, in large pages when it
    is read. All contenders read weights from these pages.
    """
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    map_file(path)[:: mmap.PAGESIZE].max()


def _race(kind: str, cases: dict[str, GenerationCase], threads: int, rounds: Rounds) -> list[Outcome]:
    """Check the contenders against fastllm, then time them in turns. Raises PeerError.

    transformers computes with float32 whatever the file, so it is timed with F32 alone.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(threads_of_processes(threads))
        workers: dict[str, Worker] = {}
        outcomes: dict[str, Outcome] = {}
        expected: np.ndarray | None = None
        ours = cases["fastllm"]
        warm_up(ours, ("decoding",), ("reading",), ("together", ours.together))
        for name, case in cases.items():
            began = time.perf_counter()
            worker = Worker(name, case)
            stack.callback(worker.close)
            logits = worker("logits")
            outcome = Outcome(kind, name, case, load_seconds=time.perf_counter() - began)
            if expected is None:
                expected = logits
            else:
                outcome.error = check(logits, expected, kind, name)
            if name == "transformers" and kind != "F32":
                worker.close()
                continue
            workers[name], outcomes[name] = worker, outcome
        for name, worker in workers.items():  # first calls are not timed
            worker("decoding")
            worker("reading")
            outcomes[name].memory["file"] = size_of(cases[name].path)
        entries = list(workers.items())
        for number in range(rounds.decoding):
            for name, worker in in_turn(entries, number):
                time.sleep(PAUSE)
                outcomes[name].decoding.append(worker("decoding"))
        for number in range(rounds.reading):
            for name, worker in in_turn(entries, number):
                time.sleep(PAUSE)
                outcomes[name].reading.append(worker("reading"))
        for name, worker in workers.items():
            outcomes[name].memory |= worker("memory")
        fastllm = workers["fastllm"]
        if not fastllm("same_alone", ours.together):  # also makes the first call, which is not timed
            raise PeerError(f"texts side by side must equal those of each alone; got others on {kind}; not timed")
        for _ in range(rounds.together):
            time.sleep(PAUSE)
            outcomes["fastllm"].alone.append(fastllm("together", 1))
            outcomes["fastllm"].together.append(fastllm("together", ours.together))
    return list(outcomes.values())


def check(logits: np.ndarray, expected: np.ndarray, kind: str, name: str) -> float:
    """How far apart logits are, relative to the largest. Raises PeerError where that is too far."""
    tolerance = TOLERANCES[name][kind]
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not error <= tolerance:
        raise PeerError(
            f"logits after the prompt must agree to {tolerance:.0e} of the largest; got {error:.1e} between {name} and "
            f"fastllm on {kind}; nothing was timed"
        )
    return error
