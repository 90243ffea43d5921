"""The package's face: public names, and what importing it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastllm

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", fastllm.__all__)
def test_public_names_are_there(name):
    assert getattr(fastllm, name)
    assert name in dir(fastllm)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="module 'fastllm' has no attribute 'Modell'"):
        _ = fastllm.Modell


@pytest.mark.parametrize(
    "statement",
    [
        "import fastllm",
        "import fastllm; fastllm.ModelConfig, fastllm.preset, fastllm.FormatError",
        "import fastllm; fastllm.WordTokenizer.build(['a']).encode('a')",
        "import fastllm.cli; fastllm.cli._parser(None)",
    ],
)
def test_numba_is_imported_by_nothing_but_kernels(statement):
    code = f"{statement}\nimport sys\nassert not {{'numba', 'llvmlite', 'fastllm.kernels.jit'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
