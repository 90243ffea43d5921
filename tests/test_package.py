"""The package's face: public names, and what importing it costs."""

import os
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


ONE_STEP = """
from numba.core.runtime import rtsys
import fastllm
import fastllm.kernels
compiled = []
with fastllm.kernels.watch_compilation(compiled.append):
    model = fastllm.Model(fastllm.preset("nano", vocab_size=8, layers=1), seed=0)
    print(model.loss_and_gradients([1, 2, 3], [2, 3, 4]), bool(compiled), rtsys._init)
"""


def test_kernels_on_the_disk_set_up_no_compiler(tmp_path):
    settings = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    lines = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", ONE_STEP], env=os.environ | settings, stdout=subprocess.PIPE,
            check=True, text=True,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert lines[0][1:] == ["True", "True"]
    assert lines[1] == [lines[0][0], "False", "False"]
