"""fastllm doctor and warmup, and the scripts in benchmarks/. No test looks at a time."""

from __future__ import annotations

import json
import os
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from processes import fastllm_process, script
from tiny_checkpoint import write_checkpoint

import fastllm
from fastllm import bench, cli, machine
from fastllm.cli import doctor
from fastllm.formats import write_gguf
from fastllm.quantize import quantize
from fastllm.tokenizers import ByteTokenizer, SentencePieceTokenizer, tokenizer_to_gguf

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", ["doctor", "warmup", "bench", "convert", "quantize"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"fastllm {command}" in capsys.readouterr().out.split("example", 1)[1]


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "no_such_kernel"],
        ["bench", "--threads", "0"],
        ["bench", "--threads", "two"],
        ["bench", "scale", "--threads", "1"],  # too late in this process
        ["warmup", "--preset", "gpt3"],
        ["warmup", "--preset", "nano", "--config", "job.toml"],
        ["doctor", "now"],
        ["warmup", "--preset=--"],
        ["generate", "model", "--stop=--", "a"],
        ["convert", "model", "there", "more"],
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert capsys.readouterr().err


# doctor


def test_doctor_finds_nothing_broken_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    output = capsys.readouterr().out
    for part in ("numba", "vector width", "check matmul", "equals its twin", "layer", "folder", "problems"):
        assert part in output
    assert "BROKEN" not in output


@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        ({"NUMBA_DISABLE_JIT": "1"}, 1, "BROKEN: NUMBA_DISABLE_JIT"),
        ({"NUMBA_CPU_NAME": "no-such-cpu", "NUMBA_DISABLE_JIT": "1"}, 1, "slow: NUMBA_CPU_NAME"),
        ({"NUMBA_THREADING_LAYER": "workqueue"}, 0, "slow: the workqueue layer"),
        ({"OPENBLAS_NUM_THREADS": "999"}, 0, "slow: OPENBLAS_NUM_THREADS is 999"),
        (
            {"NUMBA_NUM_THREADS": "two", "PYTHONWARNINGS": "default"},
            0,
            "slow: NUMBA_NUM_THREADS must be a whole number above 0; got 'two'",
        ),
        ({"OMP_NUM_THREADS": "1,0"}, 0, "slow: OMP_NUM_THREADS must be a whole number above 0; got '1,0'"),
        ({"NUMBA_NUM_THREADS": "0"}, 1, "NUMBA_NUM_THREADS must be a whole number above 0; got '0'"),
        (
            {"NUMBA_DISABLE_JIT": "1", "NUMBA_CACHE_DIR": "{file}/below"},
            1,
            "slow: no cache folder is writable",
        ),
    ],
    ids=[
        "no compilation",
        "another processor",
        "workqueue",
        "too many threads",
        "a word",
        "none within loops",
        "no threads",
        "no cache",
    ],
)
def test_doctor_names_the_problem(environment: dict[str, str], status: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = fastllm_process("doctor", **{k: v.format(file=file) for k, v in environment.items()})
    assert result.returncode == status, result.stdout + result.stderr
    assert said in result.stdout
    assert "fix: " in result.stdout


def test_no_threads_are_an_error_that_names_the_setting(saved: Path) -> None:
    result = fastllm_process("generate", str(saved), "a", NUMBA_NUM_THREADS="0")
    assert result.returncode == 1
    assert result.stderr == ("fastllm: error: NUMBA_NUM_THREADS must be a whole number above 0; got '0'; unset it\n")


def test_doctor_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(out, *others):
        out[...] = 0

    monkeypatch.setattr("fastllm.kernels.matmul", wrong)
    assert cli.main(["doctor"]) == 1
    assert "BROKEN: matmul fails" in capsys.readouterr().out


def test_doctor_shows_what_optional_packages_are_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name in ("jinja2", "llama-cpp-python"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(doctor.metadata, "version", version)
    lines = {name: value for name, value in doctor._optional() if isinstance(value, str)}
    for name in ("tokenizers", "jinja2", "huggingface_hub", "llama-cpp-python", "torch", "transformers"):
        said, purpose = lines[name][:15].strip(), lines[name][15:].strip()
        assert said == ("not installed" if name in ("jinja2", "llama-cpp-python") else "1.2.3")
        assert purpose
    monkeypatch.undo()
    assert cli.main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "optional packages" in output
    assert all(purpose in output for purpose in doctor.OPTIONAL.values())


def test_doctor_asks_for_the_versions_that_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {doctor.required(name) for name in doctor.VERSIONS} <= set(project["dependencies"])
    assert {requirement.partition(">")[0] for requirement in project["dependencies"]} <= set(doctor.PACKAGES)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.60.1", "is too old"),
        ("0.61.0", None),
        ("0.68.1", None),
        ("0.69.0rc1", "is newer than what"),
        ("1.0", "is newer"),
    ],
)
def test_doctor_compares_versions(monkeypatch: pytest.MonkeyPatch, version: str, said: str | None) -> None:
    monkeypatch.setattr(doctor.metadata, "version", {"numba": version}.get)
    monkeypatch.setattr(doctor, "PACKAGES", ("numba",))
    problems: list[doctor.Problem] = []
    assert ("numba", version) in list(doctor._versions(problems))
    assert [problem.fix for problem in problems] == ["pip install 'numba>=0.61,<0.69'"] * (said is not None)
    assert all(f"numba {version} {said}" in problem.what for problem in problems)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),  # one and a half
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),  # version 1
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "100000 0"}, 8),
        ({}, 8),
    ],
)
def test_a_containers_limit_of_time(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path.relative_to("/sys/fs/cgroup").as_posix(), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert machine.usable_cores() == cores


def test_memory_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    250 kB\nHugePages_Total:       0"
    monkeypatch.setattr(machine, "_read", lambda path: text if path == Path("/proc/meminfo") else "")
    assert machine.memory() == (1000 * 1024, 250 * 1024)


def test_machine() -> None:
    assert machine.cpu_name()
    assert 1 <= machine.usable_cores() <= machine.logical_cores()
    assert (machine.physical_cores() or 1) <= machine.logical_cores()
    total, available = machine.memory()
    assert total is None or total > 2**20
    assert available is None or available <= total


@pytest.mark.parametrize(
    "words",
    ["bench matmul --quick", "bench training_step --quick", "bench generate", "warmup", "warmup --preset nano"],
)
def test_where_the_compiler_is_switched_off(words: str) -> None:
    result = fastllm_process(*words.split(), NUMBA_DISABLE_JIT="1")
    assert result.returncode == 2
    assert result.stderr == (
        "fastllm: error: backend 'numba' must compile; got NUMBA_DISABLE_JIT, which forbids it; unset that, or use "
        "'numpy'\n"
    )


# warmup


def test_warmup_of_a_preset_needs_no_compilation_the_second_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        assert cli.main(["warmup", "--preset", "nano"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "all" in lines[-1]
    assert "came from the cache" in lines[-1]
    for name in ("attention_decode", "zero", "replayed calls"):
        assert any(f" {name} " in line for line in lines), name
    assert not any("layernorm" in line for line in lines), "nano has none"


def test_warmup_of_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        '[model]\npreset = "rustgpt"\n[optimizer]\nname = "sgd"\n'
        '[[phases]]\nname = "one"\ndata = "facts.jsonl"\nepochs = 1\nlearning_rate = 1e-3\n'
    )
    assert cli.main(["warmup", "--config", str(job)]) == 0
    output = capsys.readouterr().out
    assert " sgd " in output
    assert " adamw " not in output


@pytest.mark.parametrize("lora", ["", "[lora]\nrank = 2\n"])
def test_warmup_of_a_tuning_job(tmp_path: Path, capsys: pytest.CaptureFixture[str], lora: str) -> None:
    write_checkpoint(tmp_path / "model")
    job = tmp_path / "job.toml"
    job.write_text(
        f'[model]\npath = "{(tmp_path / "model").as_posix()}"\n{lora}'
        '[[phases]]\nname = "one"\ndata = "facts.jsonl"\nepochs = 1\nlearning_rate = 1e-3\n'
    )
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert cli.main(["warmup", "--config", str(job)]) == 0
    output = capsys.readouterr().out
    assert ("lora_backward" in output) == bool(lora)
    assert " adamw " in output
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_what_was_warmed_up_is_all_that_training_and_answering_need(tmp_path: Path) -> None:
    """From an empty cache. The model itself comes last: were a kernel missing, or a type of it, it would compile."""
    done = fastllm_process("warmup", "--preset", "llama", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"  linear_forward .* compiled\n", done.stdout)
    assert re.search(r"  the model .* from the cache\n", done.stdout)


def mixed_file(path: Path) -> Path:
    """A GGUF file whose layers are of different kinds, as those of most quantised models are."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = SentencePieceTokenizer(tokens, [0.0] * 259, [2, 3, 3, *[6] * 256], end_id=2, begin_id=1, unknown_id=0)
    config = fastllm.preset(
        "llama", vocab_size=259, width=64, hidden=96, layers=4, heads=2, kv_heads=2, context=16, rope_interleaved=True
    )
    parameters = fastllm.Model(config, backend="numpy").parameters
    weights = {name: array if array.ndim == 1 else quantize(array, "Q4_0") for name, array in parameters.items()}
    odd = "blocks.2.feed_forward.down.weight"
    weights[odd] = quantize(parameters[odd], "Q4_1")
    write_gguf(path, config, weights, None, tokenizer_to_gguf(tokenizer))
    return path


def test_warmup_of_a_file_compiles_its_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mixed_file(tmp_path / "model.gguf")
    for _ in range(2):
        assert cli.main(["warmup", "--model", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "came from the cache" in lines[-1]
    for said in ("dot products of Q4_0", "unpacking of Q4_1", "attention_decode", "rms_norm_forward", "the model"):
        assert any(said in line for line in lines), said
    assert not any("adamw" in line or "Q8_0" in line or "backward" in line for line in lines)


def test_warmup_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = fastllm.preset("nano", vocab_size=259, width=32, hidden=32, layers=1, heads=2, context=8)
    fastllm.save(tmp_path / "model", fastllm.Model(config, backend="numpy"), ByteTokenizer())
    assert cli.main(["warmup", "--model", str(tmp_path / "model")]) == 0
    assert " adamw " in capsys.readouterr().out
    assert cli.main(["warmup", "--model", str(tmp_path / "nothing")]) == 1
    assert "there must be a model at" in capsys.readouterr().err


# bench


def test_readme_table(tmp_path: Path) -> None:
    def result(case: str, contender: str, median: float, ratio: float) -> dict[str, object]:
        record = bench.Record(case, contender, 9.0, median, median / 2, median * 2, ratio, None, 12.345)
        return vars(record) | {"machine": "a machine"}

    results = [
        *(result("scale small", "numba", 2.0, 0.5), result("scale small", "numpy", 1.0, 1.0)),
        *(result("training_step tiny", "numba", 1.0, 3.0), result("training_step tiny", "numpy", 3.0, 1.0)),
    ]
    times, readme = tmp_path / "times.json", tmp_path / "README.md"
    times.write_text(json.dumps(results))
    readme.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    for _ in range(2):  # the second time there is a table to replace
        assert script("make_readme_table")([str(times), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:begin -->\n")
    assert text.endswith("\n<!-- bench:end -->\nafter\n")
    assert "old" not in text
    assert text.count("| tiny | 3.00 | 1.00 | 0.500 - 2.00 | 3.00x | - | 12.3 |") == 1
    assert text.count("| scale small | 1.00 | 2.00 | 1.00 - 4.00 | **0.50x** | - | 12.3 |") == 1
    assert "Of 2 cases the kernels lose 1." in text

    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="bench:begin"):
        script("make_readme_table")([str(times), "--readme", str(readme)])
    assert readme.read_text() == "no markers"


def test_original_job_is_of_the_original_size() -> None:
    job = runpy.run_path(str(ROOT / "benchmarks" / "original_job.py"))
    sizes = {phase: [len(e.tokens) + 1 for e in job["examples"](phase)] for phase in job["PHASES"]}
    assert {phase: (len(rows), sum(rows)) for phase, rows in sizes.items()} == {
        "facts": (25, 194),
        "dialogues": (53, 1269),
    }


def test_original_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.json"
    assert script("original_job")(["--epochs", "1", "--json", str(path)]) == 0
    numba, numpy = json.loads(path.read_text())
    assert (numba["backend"], numpy["backend"]) == ("numba", "numpy")
    assert numba["updates"] == numpy["updates"] == 25 + 53
    # 78 updates let the roundings of the two grow: to 1e-4 or so
    assert numba["loss"] == pytest.approx(numpy["loss"], rel=1e-2)
    assert "ratio: " in capsys.readouterr().out


def test_original_job_on_one_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("original_job")(["--epochs", "1", "--backend", "numba"]) == 0
    output = capsys.readouterr().out
    assert "78 updates" in output
    assert "numpy:" not in output
    with pytest.raises(SystemExit) as end:
        script("original_job")(["--epochs", "0"])
    assert end.value.code == 2
