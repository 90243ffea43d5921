"""Kernels compiled before they are waited for, and the processes that help with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np
import pytest

import fastllm
from fastllm import compilation, datasets
from fastllm.cli import warmup
from fastllm.compilation import Uses
from fastllm.formats import open_model, write_gguf
from fastllm.generation import Engine, GenerationConfig, generate_tokens
from fastllm.kernels import cache_directory, reference
from fastllm.kernels.cases import CASES
from fastllm.layers.recording import listening
from fastllm.quantize import quantize

SMALL = {"vocab_size": 40, "width": 64, "hidden": 96, "layers": 2, "heads": 4, "context": 8}
MODELS = {
    "rustgpt": {"preset": "rustgpt", "kv_heads": 4, "heads": 1},
    "gpt2": {"preset": "gpt2", "kv_heads": 4},
    "gpt2 with dropout": {"preset": "gpt2", "kv_heads": 4, "dropout": 0.1},
    "llama": {"preset": "llama", "kv_heads": 2},
    "qwen3": {"preset": "llama", "kv_heads": 2, "qk_norm": True, "head_size": 24, "tied_head": True},
    "other RoPE": {"preset": "llama", "kv_heads": 4, "rope_interleaved": True, "rope_scaling": {
        "type": "linear", "factor": 2.0}},
    "a context of one": {"preset": "gpt2", "kv_heads": 4, "context": 1},
}  # fmt: skip


GENERATING = Uses(generates=True)


def model_of(name: str, weights: str | None = None, directory=None) -> fastllm.Model:
    """A model, in memory or opened from a GGUF file of a kind of weights."""
    fields = SMALL | MODELS[name]
    fields["kv_heads"] = min(fields["kv_heads"], fields["heads"])
    config = fastllm.preset(fields.pop("preset"), **fields)
    model = fastllm.Model(config)
    if weights is None:
        return model
    arrays = {
        name: quantize(array, weights) if array.ndim == 2 and array.shape[1] % 32 == 0 else array
        for name, array in model.parameters.items()
    }
    write_gguf(directory / "model.gguf", config, arrays, None, {})
    opened = open_model(directory / "model.gguf")
    return fastllm.Model(opened.config, weights=opened.weights)


def types_of(arguments):
    return tuple(map(numba.typeof, arguments))


def assert_all_is_known(model, *uses):
    """A helper calls the same kernels with the same types, as Numba tells them apart, as the model itself."""
    task = json.loads(json.dumps(compilation.task_of(model, Uses(*uses))))
    noted = compilation._noted(*compilation._small_model(task))
    helped = {name: {types_of(call.args) for call in calls} for name, calls in noted.items()}
    own = {}
    with listening(model._backend, reference) as calls, np.errstate(all="ignore"):
        compilation.exercise(model, Uses(*uses))
    for kernel, arguments in calls:
        own.setdefault(kernel.__name__, set()).add(types_of(arguments))
    assert helped == own
    assert list(helped) == list(own)
    assert len(own) > 5 or model.config.context == 1  # then there is nothing to decode


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion"])
def test_a_helper_knows_what_training_needs(name, optimizer):
    model = model_of(name)
    assert_all_is_known(model, fastllm.optimizers.OPTIMIZERS[optimizer](model), False, True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("uses", [(True, False), (False, True), (True, True)])
def test_a_helper_knows_what_measuring_and_generating_need(name, uses):
    assert_all_is_known(model_of(name), None, *uses)


@pytest.mark.parametrize("weights", ["Q4_0", "Q8_0", "F16", "F32"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_a_helper_knows_what_a_file_needs(name, weights, tmp_path):
    model = model_of(name, weights, tmp_path)
    model.cache_dtype = "float16"
    assert_all_is_known(model, None, True, True)


@pytest.mark.parametrize("weights", [None, "Q8_0"])
def test_a_helper_knows_what_tuning_needs(weights, tmp_path):
    model = model_of("llama", weights, tmp_path)
    model.add_lora(targets=("query", "down"))
    assert_all_is_known(model, fastllm.AdamW(model), False, True)


def test_a_helper_begins_elsewhere_and_leaves_the_matrix_product_for_last():
    model = model_of("llama")
    calls = compilation._work(compilation.task_of(model, Uses(fastllm.AdamW(model), measures=True, generates=True)))
    names = [call.func.__name__ for call in calls]
    assert names[0] == "attention_decode"
    assert set(names[-2:]) == compilation.SELECTIONS
    assert set(names[-7:-2]) <= compilation.PRODUCTS
    assert names.index("squared_norm") < names.index("embedding_forward") < names.index("linear_forward")


def test_without_a_model_all_kernels_are_compiled():
    assert set(compilation.calls_of({})) == set(CASES)


def helper(task, folder=None):
    process = subprocess.Popen(
        [sys.executable, *compilation.ISOLATED],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
    )  # fmt: skip
    process.stdin.write(compilation.lines_for_helper(task))
    process.stdin.flush()
    return process


@pytest.mark.parametrize("weights", [None, "Q4_1"])
def test_a_helper_does_all_there_is_to_do(weights, tmp_path):
    model = model_of("llama", weights, tmp_path)
    uses = Uses(fastllm.AdamW(model) if weights is None else None, True, True)
    compilation.compile_kernels(model, uses)
    process = helper(compilation.task_of(model, uses) | {"share": [1, 2]})
    assert process.wait(120) == 0
    assert process.communicate() == (b"", b"")


def test_helpers_begin_at_different_places_and_do_all():
    work = list(range(10))
    assert [compilation._from_share(work, number, 3)[0] for number in range(3)] == [0, 3, 6]
    assert all(sorted(compilation._from_share(work, number, 3)) == work for number in range(3))


ENDLESS = """
import time
from fastllm import compilation
compilation._work = lambda task: [lambda: print("busy", flush=True), lambda: time.sleep(600)]
compilation.help_to_compile()
"""


def test_a_helper_ends_with_whom_it_helps():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    process.stdin.write(json.dumps({"share": [0, 1]}).encode() + b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"busy\n"
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def test_a_helper_runs_nothing_that_lies_where_the_user_is(tmp_path, monkeypatch):
    """A folder of a stranger's, say. The program `fastllm` itself imports nothing from there either."""
    for name in ("json", "numpy", "fastllm", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "path", [folder or str(Path.cwd()) for folder in sys.path])
    model = model_of("gpt2")
    compilation.compile_kernels(model, GENERATING)
    process = helper(compilation.task_of(model, GENERATING) | {"share": [0, 1]}, tmp_path)
    assert process.wait(120) == 0
    assert process.communicate() == (b"", b"")


@contextmanager
def something_compiles(report):
    report("a_kernel")
    report("another_kernel")
    yield


@pytest.fixture
def helpers(monkeypatch):
    """The processes that are started as soon as something must be compiled, on a machine of three cores."""
    started = []
    start = compilation.Helpers.start

    def noting(self):
        start(self)
        started.append(self.processes)

    monkeypatch.setattr(compilation.Helpers, "start", noting)
    monkeypatch.setattr("fastllm.kernels.watch_compilation", something_compiles)
    monkeypatch.setattr(compilation, "usable_cores", lambda: 3)
    monkeypatch.setattr("fastllm.kernels.jit.thread_limit", lambda: 3)
    return started


def test_helpers_are_there_while_it_compiles(helpers, capsys):
    compilation.compile_kernels(model_of("gpt2"), GENERATING)
    (processes,) = helpers
    assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)
    said = capsys.readouterr().err
    assert said.startswith("compiling kernels (once for this machine) ...\ncompiled the kernels in ")
    assert said.endswith(" s; they are kept on disk\n")


@pytest.mark.parametrize("is_known", [True, False])
def test_where_kernels_are_not_kept_nobody_says_so(helpers, monkeypatch, capsys, is_known):
    """Without a folder, or when storing fails at last."""
    answers = iter([not is_known] * 2)  # for the first line, for helpers
    monkeypatch.setattr("fastllm.kernels.keeps_kernels", lambda: next(answers, False))
    compilation.compile_kernels(model_of("gpt2"), GENERATING)
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"compiling kernels{'' if is_known else ' (once for this machine)'} ..."
    assert last.endswith(" s; they can't be kept on disk")
    assert warmup._outcome(1, 2) == "compiled kernels can't be kept on disk; see `fastllm doctor`"


def test_helpers_keep_kernels_where_this_process_does(monkeypatch):
    """Though it has gone to another folder since, and the setting is a relative path."""
    given = []

    def popen(*arguments, env, **options):
        given.append((Path(env["NUMBA_CACHE_DIR"]), env["NUMBA_NUM_THREADS"]))
        raise OSError

    monkeypatch.setattr(compilation.subprocess, "Popen", popen)
    monkeypatch.setattr(compilation, "usable_cores", lambda: 2)
    monkeypatch.setattr("fastllm.kernels.jit.thread_limit", lambda: 2)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    compilation.Helpers(dict).start()
    assert given == [(cache_directory().parents[1], "1")]


def test_a_trainer_has_help_in_its_first_update(helpers):
    model = model_of("gpt2")
    batch = datasets.pack([datasets.Example(np.array([1, 2, 3], np.int32), np.array([2, 3, 4], np.int32))])
    data, schedule = datasets.OneBatch(batch), fastllm.Schedule(peak=1e-3)
    trainer = fastllm.Trainer(model, fastllm.AdamW(model), data, schedule, steps=3)
    trainer.train()
    assert [[process.poll() is not None for process in processes] for processes in helpers] == [[True, True]]


def test_generating_has_help_until_the_second_token(helpers):
    [generation] = Engine(model_of("gpt2")).submit([1, 2], GenerationConfig(max_tokens=4))
    assert len(list(generation)) == 4
    assert [[process.poll() is not None for process in processes] for processes in helpers] == [[True, True]] * 2


def test_a_beam_search_has_help(helpers):
    config = GenerationConfig(max_tokens=3, beams=2)
    assert len(list(generate_tokens(model_of("gpt2"), [1, 2], config))) == 3
    assert len(helpers) == 1


def test_a_numpy_model_needs_no_help(helpers):
    model = fastllm.Model(model_of("gpt2").config, seed=0, backend="numpy")
    assert len(list(generate_tokens(model, [1, 2], max_tokens=2))) == 2
    assert helpers == []


def test_helpers_end_where_compiling_is_interrupted(helpers, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(compilation, "exercise", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compilation.compile_kernels(model_of("gpt2"), GENERATING)
    assert [process.poll() is not None for process in helpers[0]] == [True, True]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fastllm.compilation.usable_cores", lambda: 1),
        ("fastllm.kernels.keeps_kernels", lambda: False),
        ("sys.executable", ""),
        ("sys.executable", "/usr/bin/uwsgi"),
        ("sys.executable", "/there/is/no/python"),
        ("sys.frozen", True),
    ],
)
def test_where_nobody_can_help_it_compiles_alone(helpers, monkeypatch, name, value, capsys):
    monkeypatch.setattr(name, value, raising=False)
    compilation.compile_kernels(model_of("gpt2"), GENERATING)
    assert helpers == [[]]
    assert "compiled the kernels in " in capsys.readouterr().err


def test_a_limit_of_threads_is_one_of_processes_too(helpers, monkeypatch):
    monkeypatch.setattr("fastllm.kernels.jit.thread_limit", lambda: 2)
    compilation.compile_kernels(model_of("gpt2"), GENERATING)
    monkeypatch.setattr("fastllm.kernels.jit.thread_limit", lambda: 1)
    compilation.compile_kernels(model_of("gpt2"), GENERATING)
    assert [len(processes) for processes in helpers] == [1, 0]


@pytest.mark.parametrize(("given", "limit"), [("1", 1), ("two", numba.config.NUMBA_DEFAULT_NUM_THREADS)])
def test_the_limit_is_what_numba_makes_of_its_setting(given, limit):
    """It ignores what is no number, with a warning."""
    script = "from fastllm.kernels.jit import thread_limit; print(thread_limit())"
    found = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"NUMBA_NUM_THREADS": given}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert found.stdout == f"{limit}\n"


def test_nothing_is_started_where_all_is_there(helpers, monkeypatch, capsys):
    model = model_of("gpt2")
    compilation.exercise(model, GENERATING)
    monkeypatch.setattr("fastllm.kernels.watch_compilation", lambda report: contextmanager(lambda: iter([None]))())
    compilation.compile_kernels(model, GENERATING)
    assert (helpers, capsys.readouterr().err) == ([], "")


def test_the_twins_need_no_compilation(helpers):
    compilation.compile_kernels(fastllm.Model(model_of("gpt2").config, backend="numpy"), GENERATING)
    assert helpers == []


def test_what_is_compiled_leaves_the_model_as_it_is():
    model = model_of("llama")
    before = model.parameters.flat.copy()
    compilation.compile_kernels(model, Uses(fastllm.AdamW(model), measures=True, generates=True))
    np.testing.assert_array_equal(model.parameters.flat, before)
    assert not model.gradients.flat.any()
