"""fastllm bench peers: the race against PyTorch. No test looks at a time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from fastllm import cli, preset
from fastllm.parameters import parameter_shapes
from fastllm.peers import race as race_module
from fastllm.peers import report
from fastllm.peers import worker as worker_module
from fastllm.peers.cases import AttentionCase, TrainingCase, cases
from fastllm.peers.race import PeerError, Race, Result, Worker, race
from fastllm.peers.worker import read_floats, write_floats

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")

TINY = {"width": 16, "hidden": 24, "layers": 2, "context": 12}
SMALL_CASES = {
    "rustgpt": TrainingCase(preset("rustgpt", vocab_size=30, **TINY), [5, 12, 1]),
    "gpt2": TrainingCase(preset("gpt2", **TINY | {"vocab_size": 30, "heads": 2}), [12, 12]),
    "llama": TrainingCase(preset("llama", **TINY | {"vocab_size": 30, "heads": 4, "kv_heads": 2}), [7, 3]),
    "attention": AttentionCase(heads=2, head_size=8, length=70),
}


@needs_torch
@pytest.mark.parametrize("name", SMALL_CASES)
def test_pytorch_computes_the_same(name: str) -> None:
    """A race times nothing unless losses, gradients, and losses after updates agree: here they do."""
    result = race(name, SMALL_CASES[name], 1.0, threads=2, rounds=2, contenders=("fastllm", "eager"))
    assert [entry.contender for entry in result.results] == ["fastllm", "eager"]
    for entry in result.results:
        assert len(entry.seconds) == 2
        assert min(entry.seconds) > 0
        assert entry.peak_bytes > 1e7
    assert all(value > 0 for limits in result.limits for value in limits.values())


class FakeWorker:
    """A contender that answers at once: a loss, gradients, the loss after updates, and a weight then."""

    def __init__(
        self, name: str, loss: float = 2.0, gradient: float = 1.0, after: float = 1.5, weight: float = 1.1
    ) -> None:
        self.name, self.loss, self.gradient, self.after, self.weight = name, loss, gradient, after, weight

    def __call__(self, method: str, *arguments: object) -> object:
        if method == "gradients":
            write_floats(Path(str(arguments[0])) / self.name, 0, np.array([self.gradient, 2.0, 3.0], np.float32))
            return self.loss
        if method == "weights":
            write_floats(Path(str(arguments[0])) / self.name, 0, np.array([self.weight, 2.0, 3.0], np.float32))
            return True
        assert method == "steps"
        return 0.1, self.after


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"loss": 2.001}, "loss 2.001"),
        ({"loss": float("nan")}, "loss nan"),
        ({"gradient": 1.001}, "gradients"),
        ({"gradient": float("nan")}, "gradients nan"),
        ({"after": 1.6}, "after 3 updates"),
        ({"weight": 1.102}, "weights after 3 updates must agree to 5e-03 of their change; got 2.0e-02"),
        ({"weight": float("nan")}, "weights after 3 updates"),
    ],
    ids=str,
)
def test_contenders_that_differ_are_not_timed(tmp_path: Path, wrong: dict[str, float], said: str) -> None:
    write_floats(tmp_path / "weights", 0, np.array([1.0, 2.0, 3.0], np.float32))
    race_module._check([FakeWorker("fastllm"), FakeWorker("eager", weight=1.1004)], tmp_path)
    with pytest.raises(PeerError, match=said):
        race_module._check([FakeWorker("fastllm"), FakeWorker("eager", **wrong)], tmp_path)


def test_a_contender_that_fails_is_named() -> None:
    worker = Worker("fastllm", SMALL_CASES["attention"])
    try:
        with pytest.raises(PeerError, match=r"fastllm failed in no_such_method: AttributeError"):
            worker("no_such_method")
        worker._process.kill()
        with pytest.raises(PeerError, match="exit code -9"):
            worker("steps", 1)
    finally:
        worker.close()


def test_floats_come_back_from_where_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "floats"
    write_floats(path, 3, np.arange(4, dtype=np.float32).reshape(2, 2))
    write_floats(path, 0, np.full(3, 7, np.float32))
    back = np.empty(5, np.float32)
    read_floats(path, 1, back)
    assert back.tolist() == [7, 7, 0, 1, 2]


def test_flops_count_every_matrix_and_what_the_mask_lets_through() -> None:
    for case in (entry for entry in SMALL_CASES.values() if isinstance(entry, TrainingCase)):
        decayed, _ = parameter_shapes(case.config)
        matrices = sum(int(np.prod(shape)) for shape in decayed.values())
        matrices += 30 * 16 if case.config.tied_head else 0
        pairs = sum(i + 1 for length in case.lengths for i in range(length))
        heads = case.config.heads * (case.config.head_size or 0)
        assert case.flops == 6 * matrices * sum(case.lengths) + 12 * pairs * heads * case.config.layers


def test_the_cases_are_those_that_are_promised() -> None:
    table = cases()
    assert len(table) == 8
    case, target = table["tiny, real lengths"]
    assert isinstance(case, TrainingCase)
    assert target == 4
    assert len(case.lengths) == 32
    assert len(set(case.lengths)) > 5


def a_race(name: str = "one") -> Race:
    results = [
        Result("fastllm", 10**8, [0.2, 0.1, 0.3]),
        Result("eager", 4 * 10**8, [0.5, 0.4, 0.6]),
        Result("compiled", 5 * 10**8, [0.4, 0.4, 0.4]),
    ]
    limits = [{"gflops": 100.0, "read_gbytes_per_s": 30.0, "update_gbytes_per_s": 40.0}]
    return Race(name, 1.5, 10 * 10**9, results, limits)


def test_the_ratio_is_against_the_better_pytorch(tmp_path: Path) -> None:
    assert report.ratio(a_race()) == pytest.approx(2.0)
    assert report.share_of_peak(a_race()) == pytest.approx(0.5)
    line = report.row(a_race())
    assert "2.00x" in line
    assert "50%" in line
    assert "100 / 400" in line
    report.write_json(tmp_path / "peers.json", [a_race()], {"two": "no memory"}, 2)
    written = json.loads((tmp_path / "peers.json").read_text())
    assert written["failed"] == {"two": "no memory"}
    assert written["cases"][0]["contenders"]["eager"]["median_ms"] == pytest.approx(500)
    assert written["cases"][0]["ratio"] == pytest.approx(2.0)


def test_the_command_races_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(name: str, *rest: object) -> Race:
        if name == "tiny, real lengths":
            raise PeerError("gradients differ")
        return a_race(name)

    monkeypatch.setattr("fastllm.peers.race.race", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    path = tmp_path / "peers.json"
    assert cli.main(["bench", "peers", "tiny*", "--json", str(path)]) == 1
    output = capsys.readouterr().out
    assert "tiny, one row" in output
    assert "FAILED: gradients differ" in output
    assert "nanoGPT" not in output
    written = json.loads(path.read_text())
    assert [case["case"] for case in written["cases"]] == ["tiny, one row"]
    assert written["failed"] == {"tiny, real lengths": "gradients differ"}


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["bench", "peers"]) == 2
    assert "fastllm-numba[peers]" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    assert cli.main(["bench", "peers", "large"]) == 2
    assert "'tiny, one row'" in capsys.readouterr().err


@needs_torch
@pytest.mark.parametrize("wrong", [{"betas": (0.5, 0.9)}, {"eps": 1e-4}, {"lr": 2e-3}, {"weight_decay": 10}], ids=str)
def test_an_optimizer_with_other_settings_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    case = SMALL_CASES["gpt2"]
    assert isinstance(case, TrainingCase)
    race_module._weights(case).tofile(tmp_path / "weights")

    def local(contender: worker_module.Contender, name: str) -> object:
        def call(method: str, *arguments: object) -> object:
            return getattr(contender, method)(*arguments)

        call.name = name  # type: ignore[attr-defined]
        return call

    ours = worker_module.FastllmTraining(case)
    theirs = worker_module.TorchTraining(case, compiled=False)
    settings = [(g["lr"], g["betas"], g["eps"], g["fused"], g["weight_decay"]) for g in theirs.optimizer.param_groups]
    shared = (worker_module.LEARNING_RATE, worker_module.BETAS, worker_module.EPS, True)
    assert settings == [(*shared, worker_module.WEIGHT_DECAY), (*shared, 0.0)]
    assert theirs.torch.get_num_threads() == 1
    workers = [local(ours, "fastllm"), local(theirs, "eager")]
    for worker in workers:
        worker("load", tmp_path)  # type: ignore[operator]
    race_module._check(workers, tmp_path)  # type: ignore[arg-type]
    for group in theirs.optimizer.param_groups:
        group.update(wrong)
    with pytest.raises(PeerError, match="must agree to"):
        race_module._check(workers, tmp_path)  # type: ignore[arg-type]
