"""Show versions, what optional packages are for, CPU features, threads and caches, and what is wrong with them.

Checks three kernels against their twins. The exit status is 1 if something is broken, 0 if things are merely slow.

example: fastllm doctor
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from .. import __version__, machine

PACKAGES = ("numpy", "numba", "llvmlite", "tqdm", "plotext")
# Optional packages: name -> what for.
OPTIONAL = {
    "tokenizers": "tokenizers of models from Hugging Face and GGUF files, and bpe tokenizers for your own texts",
    "jinja2": "chat templates, to talk with such models",
    "huggingface_hub": "models by name from the Hugging Face hub",
    "transformers": "opens what `fastllm convert` writes; `fastllm bench generate` races it",
    "llama-cpp-python": "opens what `fastllm convert` writes; `fastllm bench generate` races it",
    "torch": "`fastllm bench peers` races it; transformers needs it",
    "tbb": "another threading layer, besides OpenMP",
}
# From this version on, and below that, as in pyproject.toml.
VERSIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {"numpy": ((2, 0), ()), "numba": ((0, 61), (0, 69))}
FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx512vnni", "avxvnni", "neon", "sve")
CHECKED = ("matmul", "attention_forward", "attention_backward")

# Numba's settings (in the environment, NUMBA_ and the name): good value, effect of others, whether that breaks fastllm.
SETTINGS = {
    "DISABLE_JIT": (0, "turns compilation off, but the kernels only run compiled", True),
    "BOUNDSCHECK": (None, "checks every index, which takes time", False),
    "OPT": (3, "makes the compiler optimise less", False),
    "LOOP_VECTORIZE": (1, "turns vector instructions off in plain loops", False),
    "CPU_NAME": (None, "compiles for another processor than this one", False),
    "CPU_FEATURES": (None, "compiles for other features than this processor's", False),
}


@dataclass(frozen=True)
class Problem:
    """What is wrong, how to fix it, and whether it prevents (correct) results rather than just slowing things down."""

    what: str
    fix: str
    is_broken: bool = False


Line = tuple[str, object]


def configure(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    problems: list[Problem] = []
    _show("versions", _versions(problems))
    _show("optional packages", _optional())
    _show("machine", _machine())
    kernels = _import_kernels(problems)
    if kernels:
        _show("settings", _settings(problems))
        _show("kernels", _kernels(problems))
        _show("threads", _threads(problems))
        _show("cache", _cache(kernels.cache_directory(), problems))
    print("problems")
    for problem in problems:
        print(f"  {'BROKEN' if problem.is_broken else 'slow'}: {problem.what}\n    fix: {problem.fix}")
    if not problems:
        print("  none")
    return 1 if any(problem.is_broken for problem in problems) else 0


def _show(title: str, lines: Iterator[Line]) -> None:
    print(title)
    for name, value in lines:
        print(f"  {name:<20} {value}", flush=True)


def _versions(problems: list[Problem]) -> Iterator[Line]:
    yield "fastllm", f"{__version__} in {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()} in {sys.prefix}"
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
            problems.append(Problem(f"{name} is not installed", f"pip install {name}", is_broken=True))
            continue
        yield name, version
        if name in VERSIONS:
            oldest, untried = VERSIONS[name]
            given, fix = tuple(int(part) for part in version.split(".")[:2]), f"pip install '{required(name)}'"
            if given < oldest:
                problems.append(Problem(f"{name} {version} is too old", fix, is_broken=True))
            elif untried and given >= untried:
                problems.append(Problem(f"{name} {version} is newer than what fastllm has been tried with", fix))


def required(name: str) -> str:
    """What pip is asked for, such as "numpy>=2.0"."""
    bounds = zip((">=", "<"), VERSIONS[name], strict=True)
    return name + ",".join(f"{sign}{'.'.join(map(str, version))}" for sign, version in bounds if version)


def _optional() -> Iterator[Line]:
    for name, purpose in OPTIONAL.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        yield name, f"{version:<15} {purpose}"


def _machine() -> Iterator[Line]:
    physical, usable = machine.physical_cores(), machine.usable_cores()
    total, available = machine.memory()
    yield "system", platform.platform()
    yield "processor", machine.cpu_name()
    yield (
        "cores",
        f"{physical or '?'} physical, {machine.logical_cores()} logical, {usable} usable by this process",
    )
    yield "memory", f"{_gigabytes(total)}, {_gigabytes(available)} available"


def _import_kernels(problems: list[Problem]) -> ModuleType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no writable cache: _cache says so
            return importlib.import_module("fastllm.kernels")
    except Exception as error:  # whatever a broken installation raises is what we are here to show
        problems.append(
            Problem(
                f"the kernels can't be imported: {error!r}",
                "correct the setting that the error names, if it names one; otherwise reinstall numba and llvmlite",
                is_broken=True,
            )
        )
        return None


def _kernels(problems: list[Problem]) -> Iterator[Line]:
    import llvmlite.binding

    from ..bench import check_kernel
    from ..kernels.cases import CASES
    from ..kernels.llvm import HAS_WORD_PRODUCTS, LANES

    features = llvmlite.binding.get_host_cpu_features()
    yield "compiled for", llvmlite.binding.get_host_cpu_name()
    yield "features", ", ".join(name for name in FEATURES if features.get(name)) or "none of note"
    yield "vector width", f"{LANES} floats"
    weights = "multiplied as 16-bit integers" if HAS_WORD_PRODUCTS else "converted to float32, then multiplied"
    yield "quantised weights", weights
    if LANES == 4 and platform.machine().lower() in ("x86_64", "amd64"):
        problems.append(
            Problem("this processor has no AVX: vectors hold 4 floats, not 8 or 16", "use a newer processor")
        )
    for name in CHECKED:
        case = CASES[name]
        try:
            check_kernel(case, next(iter(case.realistic.values())))
        except Exception as error:  # a wrong result, or whatever stops the kernel from running
            yield f"check {name}", "FAILED"
            problems.append(
                Problem(
                    f"{name} fails: {error}",
                    "see the settings above; delete the cache folder",
                    is_broken=True,
                )
            )
        else:
            yield f"check {name}", "equals its twin"


def _threads(problems: list[Problem]) -> Iterator[Line]:
    import numba

    usable = machine.usable_cores()
    try:
        count = numba.get_num_threads()
    except ValueError as error:
        yield "layer", "FAILED"
        problems.append(
            Problem(" ".join(str(error).split()), "unset NUMBA_THREADING_LAYER, or install that layer", is_broken=True)
        )
        return
    yield "kernels", count
    try:
        layer: str = numba.threading_layer()
    except ValueError:  # no parallel kernel has run; the checks say why
        layer = "not started"
    yield "layer", layer
    if layer == "workqueue":
        problems.append(
            Problem(
                "the workqueue layer takes 45 us to start a parallel loop, OpenMP 3.5 us",
                "install OpenMP (libgomp1 on Linux, libomp on macOS) or tbb; unset NUMBA_THREADING_LAYER",
            )
        )
    given = {name: os.environ[name] for name in machine.THREAD_VARIABLES if name in os.environ}
    for name, value in given.items():
        yield name, value
        words = value.split(",") if name == "OMP_NUM_THREADS" else [value]  # a number for each level of nested loops
        if not all(map(_is_count, words)):
            problems.append(
                Problem(f"{name} must be a whole number above 0; got {value!r}, which is ignored", f"unset {name}")
            )
    for name, value in {**given, "NUMBA_NUM_THREADS": str(count)}.items():
        if value.isdigit() and int(value) > usable:
            problems.append(
                Problem(f"{name} is {value}, but this process may use {usable} cores", f"set {name}={usable}")
            )


def _is_count(word: str) -> bool:
    try:
        return int(word) > 0
    except ValueError:
        return False


def _settings(problems: list[Problem]) -> Iterator[Line]:
    from numba import config

    for name, (good, consequence, is_broken) in SETTINGS.items():
        value = getattr(config, name, good)
        is_well = value == good or not (value or good)  # None, 0 and "" are all "off"
        yield f"NUMBA_{name}", "as it should be" if is_well else value
        if not is_well:
            problems.append(Problem(f"NUMBA_{name} {consequence}", f"unset NUMBA_{name}", is_broken))


def _cache(folder: Path | None, problems: list[Problem]) -> Iterator[Line]:
    if folder is None:
        yield "folder", "none"
        problems.append(
            Problem("no cache folder is writable, or fastllm is installed without its sources, which tell versions of "
                    "the cache apart: kernels are compiled anew each time",
                    "set NUMBA_CACHE_DIR to a writable folder, or install fastllm with its source files")
        )  # fmt: skip
        return
    from ..kernels import keeps_kernels

    yield "folder", f"{folder} ({'writable' if keeps_kernels() else 'not writable'})"
    if not keeps_kernels():
        problems.append(
            Problem("the cache folder can't be written to: kernels that aren't in it are compiled anew each time",
                    "run `fastllm warmup` where it is writable, free some disk space, or set NUMBA_CACHE_DIR")
        )  # fmt: skip
    yield "size", _size(folder)
    for other in sorted(folder.parent.glob("kernels-*")):
        if other != folder:
            yield "others", f"{other.name}, {_size(other)}, of another version or other settings; may be deleted"


def _size(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{sum(sizes) / 1e6:.1f} MB in {len(sizes)} files"


def _gigabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e9:.1f} GB"
