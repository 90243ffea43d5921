"""fastllm bench generate: the race against llama.cpp and transformers. No test looks at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastllm
from fastllm import cli
from fastllm.conversion import size_of
from fastllm.formats import open_model, write_gguf, write_huggingface
from fastllm.formats.bytes_of_file import map_file
from fastllm.parameters import Parameters, initialise
from fastllm.peers import generation_race, race
from fastllm.peers import generation_report as report
from fastllm.peers.generation import GENERATORS, GenerationCase
from fastllm.peers.generation_race import KINDS, TOLERANCES, Outcome, Rounds, case_of, check, random_config
from fastllm.peers.race import PeerError
from fastllm.peers.worker import make
from fastllm.tokenizers import ByteTokenizer

TINY = {"width": 64, "hidden": 96, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64}


def save(folder: Path, **options: Any) -> fastllm.ModelConfig:
    """A random model of ours, of a kind that both others know; its configuration."""
    config = fastllm.preset("llama", **TINY | {"vocab_size": ByteTokenizer().vocab_size} | options)
    fastllm.save(folder, fastllm.Model(config, seed=1, backend="numpy"), ByteTokenizer())
    return config


def test_the_command_races_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("llama_cpp", "torch", "transformers"):
        pytest.importorskip(package)
    config = save(tmp_path / "model")
    path = tmp_path / "figures.json"
    words = ["bench", "generate", str(tmp_path / "model"), "--quick", "--threads", "1", "--json", str(path)]
    words += ["--cache-dtype", "float16"]
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    written = json.loads(path.read_text())
    rows = {(row["kind"], row["contender"]): row for row in written["rows"]}
    assert list(rows) == [
        *(("F32", name) for name in ("fastllm", "llama.cpp", "transformers")),
        *(("Q4_0", name) for name in ("fastllm", "llama.cpp")),
    ]
    for (kind, name), row in rows.items():
        assert len(row["decoding"]) == len(row["reading"]) == 2
        assert 0 < row["decode"]["p20"] <= row["decode"]["median"] <= row["decode"]["p80"]
        assert row["prompt"]["median"] > 0
        assert row["memory"]["peak"] > 1e7
        assert row["memory"]["cache"] > 0
        assert row["beyond_bytes"] == row["memory"]["peak"] - row["memory"]["file"] - row["memory"]["cache"]
        assert row["case"] == {
            "vocab": config.vocab_size, "context": 64, "prompt": 56, "new": 8, "read": 64, "together": 8,
            "cache_dtype": "float16",
        }  # fmt: skip
        assert (row["error"] is None) == (name == "fastllm")
        if row["error"] is not None:
            assert 0 < row["error"] <= TOLERANCES[name][kind]
        assert bool(row["together"]) == (name == "fastllm")
        assert all(isinstance(row[key], list) for key in ("decoding", "reading", "alone", "together"))
        assert f"{kind:<5} {name}" in output
    assert written["model"]["config"]["width"] == 64
    assert written["model"]["parameters"] == sum(
        int(np.prod(shape)) for shapes in fastllm.parameters.parameter_shapes(config) for shape in shapes.values()
    )
    assert {"numba", "llama_cpp_python", "transformers"} <= written["versions"].keys()
    assert (written["failed"], written["left_out"], written["threads"]) == ({}, [], 1)
    assert "F32: fastllm decodes" in output
    assert "Q4_0: fastllm decodes" in output


def test_who_is_not_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(generation_race, "QUICK_KINDS", ("Q8_0",))
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "generate", str(tmp_path / "model"), "--quick", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    assert "llama.cpp is not installed, so its rows are left out: pip install llama-cpp-python" in output
    written = json.loads(path.read_text())
    assert [(row["kind"], row["contender"]) for row in written["rows"]] == [("Q8_0", "fastllm")]
    assert len(written["left_out"]) == 2


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "generate", "one", "two"]) == 2
    assert "takes one model" in capsys.readouterr().err
    for words in ([], ["peers"], ["adamw"]):
        assert cli.main(["bench", *words, "--cache-dtype", "float16"]) == 2
        assert "--cache-dtype goes with `fastllm bench generate`" in capsys.readouterr().err
    assert cli.main(["bench", "generate", str(tmp_path / "nothing")]) == 1
    assert "there must be a model at" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_contenders_that_differ_are_not_timed(name: str, kind: str) -> None:
    expected = np.linspace(-4, 4, 50, dtype=np.float32)
    tolerance = TOLERANCES[name][kind]
    off = expected.copy()
    off[7] += 4 * tolerance * 0.9
    assert check(off, expected, kind, name) == pytest.approx(0.9 * tolerance, rel=1e-2)
    off[7] += 4 * tolerance
    with pytest.raises(PeerError, match=f"between {name} and fastllm on {kind}; nothing was timed"):
        check(off, expected, kind, name)
    off[7] = np.nan
    with pytest.raises(PeerError, match="got nan"):
        check(off, expected, kind, name)


class FakeWorker:
    """A contender that answers at once; the second has other logits."""

    def __init__(self, name: str, case: GenerationCase) -> None:
        self.name = name
        self.calls: list[str] = []

    def __call__(self, method: str, *arguments: object) -> object:
        self.calls.append(method)
        CALLS.append((self.name, method, *arguments))
        if method == "logits":
            return np.array([1.0, 2.0 if self.name == "fastllm" else WRONG.get(self.name, 2.0)], np.float32)
        if method == "same_alone":
            return "together" not in WRONG
        return {"peak": 100, "cache": 20} if method == "memory" else 0.5

    def close(self) -> None:
        CALLS.append((self.name, "close"))


CALLS: list[tuple[object, ...]] = []
WRONG: dict[str, float] = {}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, GenerationCase]:
    for module in generation_race, race:
        monkeypatch.setattr(module, "Worker", FakeWorker)
    monkeypatch.setattr(generation_race, "PAUSE", 0)
    CALLS.clear()
    WRONG.clear()
    (tmp_path / "file").write_bytes(bytes(30))
    return {name: GenerationCase(str(tmp_path / "file"), vocab=2) for name in GENERATORS}


def test_contenders_take_turns(fakes: dict[str, GenerationCase]) -> None:
    outcomes = generation_race._race("F32", fakes, 2, Rounds(3, 2, 1))
    names = list(GENERATORS)
    warm = len(CALLS) - 1 - next(i for i, call in enumerate(reversed(CALLS)) if call == (names[-1], "logits"))
    after = [call for call in CALLS[warm + 1 :] if call[1] in ("decoding", "reading")]
    first = [(name, method) for name in names for method in ("decoding", "reading")]
    assert after[:6] == first
    rounds = [names, [*names[1:], names[0]], [*names[2:], *names[:2]]]  # each begins in its turn
    turns = [(name, "decoding") for order in rounds for name in order]
    assert after[6:] == turns + [(name, "reading") for order in rounds[:2] for name in order]
    assert [len(outcome.decoding) for outcome in outcomes] == [3, 3, 3]
    assert outcomes[0].together == [0.5]
    assert CALLS.index(("fastllm", "memory")) < next(
        i for i, call in enumerate(CALLS) if call[:2] == ("fastllm", "together") and i > warm
    ), "its caches for several texts would count"
    assert [outcome.memory for outcome in outcomes] == [{"file": 30, "peak": 100, "cache": 20}] * 3


def test_transformers_is_timed_in_float32_alone(fakes: dict[str, GenerationCase]) -> None:
    outcomes = generation_race._race("Q8_0", fakes, 2, Rounds(1, 1, 1))
    assert [outcome.contender for outcome in outcomes] == ["fastllm", "llama.cpp"]
    assert ("transformers", "logits") in CALLS
    assert ("transformers", "decoding") not in CALLS


def test_texts_that_differ_beside_others_are_not_timed(fakes: dict[str, GenerationCase]) -> None:
    WRONG["together"] = 0.0
    with pytest.raises(PeerError, match="texts side by side must equal those of each alone; got others on F32"):
        generation_race._race("F32", fakes, 2, Rounds(1, 1, 1))
    warm = [call for call in CALLS if call[1] == "same_alone"]
    assert warm == [("fastllm", "same_alone", 8)]


@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_nothing_is_timed_where_logits_differ(fakes: dict[str, GenerationCase], name: str) -> None:
    WRONG[name] = 2.5
    with pytest.raises(PeerError, match="nothing was timed"):
        generation_race._race("Q8_0", fakes, 2, Rounds(1, 1, 1))
    assert [call for call in CALLS if call[0] == name and call[1] in ("decoding", "reading")] == []
    assert (name, "close") in CALLS


def test_a_kind_that_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "model")

    def fake(kind: str, cases: dict[str, GenerationCase], threads: int, rounds: Rounds) -> list[Outcome]:
        if kind == "F32":
            raise PeerError("logits differ")
        return [an_outcome(kind, "fastllm", 0.1)]

    monkeypatch.setattr(generation_race, "_race", fake)
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "generate", str(tmp_path / "model"), "--quick", "--json", str(path)]) == 1
    output = capsys.readouterr().out
    assert "F32 FAILED: logits differ" in output
    assert "Q4_0" in output
    written = json.loads(path.read_text())
    assert written["failed"] == {"F32": "logits differ"}
    assert [row["kind"] for row in written["rows"]] == ["Q4_0"]


# Contenders, in this process


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = fastllm.preset("llama", **TINY | {"vocab_size": 90, "rope_interleaved": True})
    parameters = Parameters(config)
    initialise(parameters, config, seed=4)
    path = tmp_path_factory.mktemp("generate") / "model.gguf"
    write_gguf(path, config, parameters, "F32")
    return path


@pytest.mark.parametrize("name", GENERATORS)
def test_a_contender_reads_and_decodes_what_the_model_says(
    name: str, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    opened = open_model(gguf)
    path = gguf
    if name == "transformers":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        path = tmp_path / "theirs"
        write_huggingface(path, opened.config, opened.weights)
    elif name == "llama.cpp":
        pytest.importorskip("llama_cpp")
    case = case_of(opened.config, path, quick=True)
    contender = make(name, case)
    model = fastllm.Model(opened.config, backend="numpy", weights=opened.weights)
    ids = case.tokens(20)
    expected = model.forward(ids)
    for _ in range(2):  # a text from its beginning, whatever was before
        got = [contender.read(ids[:10]).copy(), *(contender.step(int(token)).copy() for token in ids[10:])]
        error = np.abs(np.array(got) - expected[9:]).max() / np.abs(expected).max()
        assert error <= TOLERANCES["llama.cpp"]["F32"]
    assert check(contender.logits(), model.forward(contender.prompt)[-1], "F32", "llama.cpp") >= 0
    assert contender.decoding() > 0
    assert contender.reading() > 0
    memory = contender.memory()
    heads_and_layers = 2 * (opened.config.kv_heads or 0) * (opened.config.head_size or 0) * opened.config.layers
    tokens, size = {"fastllm": (64, 4), "llama.cpp": (256, 2), "transformers": (64, 4)}[name]  # it rounds up
    assert memory["cache"] == tokens * size * heads_and_layers
    assert memory["peak"] > memory["cache"]
    if name == "fastllm":
        assert contender.together(1) > 0
        assert contender.together(3) > 0


def test_token_counts_fit_the_context() -> None:
    full = case_of(random_config(), Path("x"), quick=False)
    assert (full.context, full.prompt, full.new, full.read, full.together) == (1024, 128, 64, 512, 8)
    for context in (2, 3, 5, 50, 100, 200, 600):
        config = fastllm.preset("llama", **TINY | {"context": context})
        case = case_of(config, Path("x"), quick=False)
        assert case.new >= 1
        assert case.prompt >= 1
        assert case.prompt + case.new <= case.context == context
        assert 1 <= case.read <= context
    with pytest.raises(fastllm.FormatError, match="2 tokens or more"):
        case_of(fastllm.preset("llama", **TINY | {"context": 1}), Path("x"), quick=False)


def test_the_random_model_is_of_110_million_parameters() -> None:
    decayed, others = fastllm.parameters.parameter_shapes(random_config())
    assert sum(int(np.prod(shape)) for shape in (decayed | others).values()) == pytest.approx(110e6, rel=0.01)


# What is printed


def an_outcome(kind: str, contender: str, seconds: float, **more: Any) -> Outcome:
    case = GenerationCase("x", vocab=9, read=100, together=4)
    memory = {"peak": 500 * 10**6, "cache": 20 * 10**6, "file": 400 * 10**6}
    return Outcome(kind, contender, case, decoding=[seconds, 2 * seconds, seconds / 2], reading=[10 * seconds] * 3,
                   memory=memory, **more)  # fmt: skip


def test_rows_and_ratios(tmp_path: Path) -> None:
    ours = an_outcome("F32", "fastllm", 0.01, alone=[0.01], together=[0.02])
    other = an_outcome("F32", "llama.cpp", 0.02, error=0.003)
    assert "100.0 (70.0-160.0)" in report.row(ours)
    assert "200 (2.00x)" in report.row(ours)  # 4 texts, a step in 0.02 s
    assert report.row(ours).split()[-3:] == ["500", "80", "-"]
    assert report.row(other).split()[-1] == "3e-03"
    assert report.ratios([ours, other]) == [
        "F32: fastllm decodes 2.00x as fast as llama.cpp, and reads prompts 2.00x as fast"
    ]
    figures = report.figures_of(ours)
    assert figures["prompt"]["median"] == pytest.approx(1000)
    assert figures["together_ratio"] == pytest.approx(2)
    report.write_json(tmp_path / "x.json", [ours, other], {"name": "x"}, 2, {}, [])
    assert json.loads((tmp_path / "x.json").read_text())["rows"][1]["contender"] == "llama.cpp"


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(7))
    (tmp_path / "config.json").write_bytes(bytes(90))
    assert size_of(str(tmp_path)) == size_of(tmp_path / "a.safetensors") == 7


def test_files_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, text = tmp_path / "x.gguf", bytes(range(256)) * 100
    path.write_bytes(text)
    done: list[Any] = []
    monkeypatch.setattr("os.posix_fadvise", lambda *what: done.append(what[1:]), raising=False)
    monkeypatch.setattr("os.POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(generation_race, "map_file", lambda path: done.append(path) or map_file(path))
    generation_race.read_anew(path)
    assert done == [(0, 0, 4), path]  # forgotten, then read
    assert path.read_bytes() == text


def test_files_are_mapped_where_there_are_no_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", 12345, raising=False)  # which no kernel knows
    path = tmp_path / "x.gguf"
    path.write_bytes(b"bytes")
    assert map_file(path).tobytes() == b"bytes"
    monkeypatch.delattr("mmap.MADV_HUGEPAGE")  # as on macOS and Windows
    assert map_file(path).tobytes() == b"bytes"


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_sigterm_leaves_no_files(tmp_path: Path) -> None:
    """They may be gigabytes."""
    save(tmp_path / "model")
    (tmp_path / "files").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastllm", "bench", "generate", str(tmp_path / "model")],
        env=os.environ | {"TMPDIR": str(tmp_path / "files")}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while process.poll() is None and not list(tmp_path.glob("files/*/*.gguf")):
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in error
    assert not list((tmp_path / "files").iterdir())
