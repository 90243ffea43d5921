"""Imports point one way, as docs/architecture.md draws them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastllm"
KERNELS = ROOT / "kernels"

# Each part of fastllm and the parts it may import. Who is not named here imports nothing of fastllm.
MAY_IMPORT = {
    "__main__": {"cli"},
    "config": {"errors", "small_files"},
    "parameters": {"config", "memory", "packed", "quantize"},
    "lora": {"config", "errors", "parameters"},
    "rope": {"config"},
    "schedules": {"config"},
    "layers": {"config", "interrupts", "lora", "machine", "memory", "packed", "parameters", "rope"},
    "machine": {"errors"},
    "inputs": {"config", "layers"},
    "model": {"config", "inputs", "interrupts", "layers", "locking", "lora", "memory", "packed", "parameters"},
    "optimizers": {"config", "interrupts", "memory", "model"},
    "quantize": {"kernels", "packed"},
    "small_files": {"errors"},
    "tokenizers": {"atomic", "config", "errors", "small_files"},
    "dialogue": {"errors", "tokenizers"},
    "records": {"dialogue", "errors", "tokenizers"},
    "datasets": {"atomic", "config", "dialogue", "errors", "inputs", "records", "tokenizers"},
    "formats": {"atomic", "config", "errors", "lora", "packed", "parameters", "quantize", "rope", "small_files"},
    "hub": {"errors"},
    "adapters": {
        "atomic", "config", "errors", "formats", "hub", "lora", "model", "packed", "parameters", "quantize",
        "small_files",
    },
    "checkpoint": {
        "adapters", "atomic", "config", "errors", "formats", "generation", "hub", "model", "optimizers", "parameters",
        "small_files", "tokenizers", "vocabulary",
    },
    "vocabulary": {"config", "errors", "small_files", "tokenizers"},
    "conversion": {
        "adapters", "atomic", "checkpoint", "config", "dialogue", "errors", "formats", "model", "packed", "parameters",
        "tokenizers",
    },
    "compilation": {"config", "kernels", "layers", "machine", "model", "optimizers", "packed", "parameters"},
    "generation": {"compilation", "config", "dialogue", "errors", "inputs", "interrupts", "model", "tokenizers"},
    "bench": {
        "atomic", "config", "datasets", "errors", "figures", "kernels", "machine", "memory", "model", "optimizers",
        "peers", "schedules", "training",
    },
    "peers": {
        "atomic", "config", "conversion", "datasets", "errors", "figures", "formats", "kernels", "machine", "model",
        "optimizers", "parameters", "records", "schedules", "tokenizers", "training",
    },
}  # fmt: skip
MAY_IMPORT["training"] = {
    "adapters", "atomic", "checkpoint", "compilation", "config", "datasets", "dialogue", "errors", "generation",
    "inputs", "interrupts", "kernels", "layers", "lora", "model", "optimizers", "parameters", "records", "schedules",
    "tokenizers",
}  # fmt: skip
MAY_IMPORT["cli"] = {*MAY_IMPORT, *set().union(*MAY_IMPORT.values())} - {"__main__", "cli"}

# What may import the compiler: kernels, and `doctor`, which shows its version and what it thinks of the machine.
COMPILER = {"numba", "llvmlite"}
SHOWS_THE_COMPILER = {PACKAGE / "cli" / "doctor.py"}


def files(folder):
    return sorted(path for path in folder.rglob("*.py") if PACKAGE / "kernels" not in path.parents)


def package_of(path):
    """("fastllm", "cli") for fastllm/cli/train.py; kernels/ is the package fastllm.kernels."""
    parts = path.relative_to(ROOT).parent.parts
    return ("fastllm", *parts) if parts[0] == "kernels" else parts


def imports(path):
    """Modules that a file imports anywhere in it, as tuples of full names: from . import x gives (..., x)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *node.module.split(".")) if node.module else base
            if module == ("fastllm",):
                yield from ((*module, alias.name) for alias in node.names)
            else:
                yield module


def part_of(path):
    """The part of fastllm a file belongs to: its folder's name, or its own."""
    return (*package_of(path), path.stem)[1]


def by_name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in files(PACKAGE) if p != PACKAGE / "__init__.py"], ids=by_name)
def test_parts_import_what_stands_below_them(path):
    part = part_of(path)
    imported = {module[1] for module in imports(path) if module[0] == "fastllm"} - {part, "__version__"}
    assert imported <= MAY_IMPORT.get(part, set())


def test_no_part_imports_itself_by_way_of_others():
    reached = {part: set(below) for part, below in MAY_IMPORT.items()}
    for _ in reached:
        for below in reached.values():
            below |= set().union(*(reached.get(part, set()) for part in below))
    assert not [part for part, below in reached.items() if part in below]


@pytest.mark.parametrize("path", files(KERNELS), ids=by_name)
def test_kernels_know_nothing_of_models(path):
    inside = {module for module in imports(path) if module[0] == "fastllm"}
    assert all(module[:2] == ("fastllm", "kernels") for module in inside)
    if path.parent == KERNELS:
        assert not any(module[2:3] in (("reference",), ("cases",)) for module in inside)


@pytest.mark.parametrize("path", files(PACKAGE), ids=by_name)
def test_the_compiler_is_imported_by_kernels_alone(path):
    imported = {module[0] for module in imports(path)} & COMPILER
    assert not imported or path in SHOWS_THE_COMPILER


@pytest.mark.parametrize("path", files(KERNELS), ids=by_name)
def test_compiler_flags_stand_in_one_file(path):
    """Only jit.py calls a decorator of Numba's."""
    names = {"njit", "jit", "vectorize", "guvectorize", "generated_jit", "stencil", "cfunc"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "numba":
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "numba":
            used |= {alias.name for alias in node.names}
    assert not used & names or path == KERNELS / "jit.py"


def test_kernels_are_one_folder():
    """fastllm.kernels is kernels/, in a checkout by a link."""
    if (ROOT / "PKG-INFO").exists() and not (PACKAGE / "kernels").exists():
        pytest.skip("a source distribution has no links")
    assert (PACKAGE / "kernels").resolve() == KERNELS.resolve()


def test_listed_packages_are_those_there_are():
    """A package that pyproject.toml forgets is missing from the wheel."""
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    code = {".".join(package_of(path)) for folder in (PACKAGE, KERNELS) for path in files(folder)}
    assert set(settings["packages"]) == code | {"fastllm.data"}


def test_private_names_stay_in_their_file():
    """What another module may use has a name without an underscore."""
    wrong = [
        f"{path.relative_to(ROOT)}: {alias.name}"
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("fastllm"))
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert wrong == []
