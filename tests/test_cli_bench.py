"""fastllm bench: what it prints and writes, and what it refuses to time. No test looks at a time."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import fastllm_process, script

from fastllm import bench, cli
from fastllm.bench import report, timing
from fastllm.kernels import reference


def test_bench_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.json"
    names = ["squared_norm", "relu_[fb]*", "training_step"]
    assert cli.main(["bench", *names, "--quick", "--json", str(path)]) == 0
    results = json.loads(path.read_text())
    cases = {"relu_forward", "relu_backward", "squared_norm", "training_step"}
    assert {result["case"].split()[0] for result in results} == cases
    assert [result["contender"] for result in results] == ["numba", "numpy"] * len(cases)
    for kernel, twin in zip(results[::2], results[1::2], strict=True):
        assert kernel["case"] == twin["case"]
        assert kernel["error"] is None
        for result in (kernel, twin):
            assert 0 < result["p20_ms"] <= result["median_ms"] <= result["p80_ms"]
            assert result["ratio"] == pytest.approx(twin["median_ms"] / result["median_ms"])
            assert result["gflops"] > 0
            assert (result["gbytes_per_s"] is None) == result["case"].startswith("training_step")
    output = capsys.readouterr().out
    assert "first calls" in output
    assert "slower than the twin" in output


def test_the_figures_of_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contenders on a clock of their own: the kernel takes 1, 2, .. 11 ms a run, its twin always 24."""
    now = 0.0

    def contender(name: str, seconds: Iterator[float]) -> timing.Contender:
        def run() -> None:
            nonlocal now
            now += next(seconds)

        return timing.Contender(name, run)

    # The very first, one to warm up and one to count by; then in each round one to warm up and one that counts.
    times = [0.5, 0.5, 0.5, *(seconds for k in range(1, 12) for seconds in (0.5, k * 1e-3))]
    kernel, twin = contender("numba", iter(times)), contender("numpy", itertools.repeat(0.024))
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(timing, "settle", lambda: None)
    benchmark = timing.Benchmark("work", (kernel, twin), lambda: None, flops=12_000_000, bytes=6_000_000)
    first, second = report.records(benchmark, timing.measure(benchmark, rounds=11, block_seconds=0.01))
    assert (first.first_ms, first.median_ms) == (pytest.approx(500), pytest.approx(6))
    assert (first.p20_ms, first.p80_ms) == (pytest.approx(3), pytest.approx(9))
    assert (first.ratio, second.ratio) == (pytest.approx(4), 1)
    assert (first.gflops, first.gbytes_per_s) == (pytest.approx(2), pytest.approx(1))
    assert second.gflops == pytest.approx(0.5)


def test_bench_reports_a_wrong_kernel_and_times_it_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def slightly_wrong(out, x):
        reference.relu_forward(out, x)
        out[-1, -1] += np.float32(1e-3)

    monkeypatch.setattr("fastllm.kernels.relu_forward", slightly_wrong)
    path = tmp_path / "times.json"
    assert cli.main(["bench", "relu_forward", "--quick", "--json", str(path)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert all(result["error"] and result["median_ms"] is None for result in json.loads(path.read_text()))
    with pytest.raises(SystemExit, match="relu_forward"):
        script("make_readme_table")([str(path)])


def test_bench_threads() -> None:
    result = fastllm_process("bench", "scale", "--quick", "--threads", "1")
    assert result.returncode == 0, result.stderr
    assert "threads 1" in result.stdout


def test_names_may_follow_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.json"
    assert cli.main(["bench", "add", "--json", str(path), "--quick", "relu_forward"]) == 0
    assert {row["case"].split()[0] for row in json.loads(path.read_text())} == {"add", "relu_forward"}
    capsys.readouterr()


@pytest.mark.parametrize("names", [["add"], ["peers"], ["generate"]])
def test_bench_looks_where_its_file_is_to_be_before_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    path = tmp_path / "missing" / "times.json"
    assert cli.main(["bench", *names, "--quick", "--json", str(path)]) == 2
    captured = capsys.readouterr()
    assert "--json must name a file in a folder that exists; got" in captured.err
    assert captured.out == ""


def test_bench_stops_when_its_file_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastllm.bench.write_json", full)
    assert cli.main(["bench", "add", "scale", "--quick", "--json", str(tmp_path / "times.json")]) == 1
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err
    assert "scale" not in captured.out, "the second was still measured"


def test_bench_notes_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastllm.cli.bench.usable_cores", lambda: 2)
    assert cli.main(["bench", "generate", "one", "two", "--threads", "3"]) == 2
    assert "fastllm: note: 3 threads on 2 cores get into each other's way" in capsys.readouterr().err


def test_contenders_take_turns_and_start_each_block_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastllm.bench.timing.PAUSE", 0)
    events: list[str] = []

    def contender(name: str) -> bench.Contender:
        return bench.Contender(name, lambda: events.append(name), lambda: events.append(f"reset {name}"))

    work = bench.Benchmark("work", (contender("a"), contender("b")), lambda: events.append("check"))
    timings = bench.measure(work, rounds=3, block_seconds=0)
    assert events[:3] == ["a", "b", "check"]
    assert events[3:] == ["reset a", "a", "a", "reset b", "b", "b"] * 4  # once to choose the calls, and 3 rounds
    assert list(timings) == ["a", "b"]


# scripts
