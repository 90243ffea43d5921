"""The package's face: public names, and what importing it costs."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def test_what_a_newcomer_sees_first():
    model = fastllm.Model(fastllm.preset("nano", vocab_size=256), backend="numpy")
    assert repr(model) == ("<Model: 4 layers of width 128, 4 heads, context 128, vocabulary 256; 885,888 parameters>")
    small = fastllm.preset("nano", vocab_size=9, layers=1, heads=1)
    assert repr(fastllm.Model(small, backend="numpy")).startswith("<Model: 1 layer of width 128, 1 head, context 128,")
    assert repr(fastllm.AdamW(model)) == f"<AdamW of {model!r}: 0 updates>"
    assert "numbers>" in repr(model.parameters)
    data = fastllm.datasets.Examples([fastllm.datasets.Example(*np.array([[1, 2], [2, -1]]))])
    assert repr(data) == "<Examples: 1, 16 in a batch>"
    stream = fastllm.datasets.TokenStream(np.arange(9), length=20)
    assert repr(stream) == "<TokenStream: 9 tokens in windows of 8, 16 in a batch>"
    trainer = fastllm.Trainer(model, fastllm.AdamW(model), data, lambda step: 1e-3, steps=3)
    assert repr(trainer) == f"<Trainer of {model!r}: update 0 of 3>"
    assert len(str(inspect.signature(fastllm.ByteTokenizer))) < 80  # not with all tokens
    assert not {"Any", "TYPE_CHECKING", "importlib", "annotations"} & {*dir(fastllm)}


def test_arguments_that_have_changed_places(tmp_path):
    tokenizer = fastllm.ByteTokenizer()
    model = fastllm.Model(fastllm.preset("nano", vocab_size=tokenizer.vocab_size), backend="numpy")
    message = "the first arguments must be a Model and its Tokenizer; got ByteTokenizer and Model"
    for call in (fastllm.generate, fastllm.stream, fastllm.generate_batch):
        with pytest.raises(TypeError, match=message):
            call(tokenizer, model, ["text"] if call is fastllm.generate_batch else "text")
    with pytest.raises(TypeError, match=message):
        fastllm.Chat(tokenizer, model)
    with pytest.raises(TypeError, match="save takes a folder, a Model and its Tokenizer, in this order; got"):
        fastllm.save(model, tmp_path, tokenizer)
    with pytest.raises(TypeError, match="a data set gives all its batches in order; got str"):
        fastllm.training.evaluate(model, "text")


PROGRAM = """
import fastllm

fastllm.GenerationConfig(stop=["\\n"], end_ids=[0])
fastllm.GenerationConfig(stop="\\n", end_ids=(0,))
fastllm.LoRAConfig(targets=["query"])
model, tokenizer = fastllm.load("folder")
text: str = fastllm.generate(model, tokenizer, "Once", max_tokens=5)
"""


def test_a_type_checker_takes_what_the_library_takes(tmp_path, monkeypatch):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(ROOT)  # where fastllm is found; but its settings are not a user's, and it is not what is checked
    words = ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    words.append(str(tmp_path / "program.py"))
    out, err, status = api.run(words)
    assert status == 0, out + err
