"""fastllm demo at reduced size, from the data to the answer, in both languages."""

import json
import os

import pytest
from test_cli_train import run, run_here
from training_jobs import Recorder, make_job

import fastllm
from fastllm.cli.demo import QUESTIONS, demo_job
from fastllm.training.config import JobConfig
from fastllm.training.job import Job
from fastllm.training.source import resolve

EPOCHS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.mark.parametrize("language", QUESTIONS)
def test_demo(folder, language):
    """Without a terminal it ends before the chat. A folder that is there stays as it is: zh's run is the second."""
    run_folder = folder / "runs" / {"en": "demo-en", "zh": "demo-zh-2"}[language]
    if language == "zh":
        (folder / "runs" / "demo-zh").mkdir(parents=True)
    status, out, err = run(folder, "demo", "--language", language, "--epochs", EPOCHS, "--rows-per-update", 32)
    assert status == 0, err
    assert f"run folder: {run_folder.relative_to(folder)}" in out
    assert sorted(os.listdir(run_folder)) == ["checkpoint", "config.toml", "loss.svg", "metrics.jsonl"]
    before, after = out.index("before training:"), out.index("after training:")
    assert out.startswith("model: 3 layers of width 128")
    assert out.count(f"you: {QUESTIONS[language]}") == 2
    assert out.index("model: 3 layers") < before < out.index("loss") < after
    assert "training questions answered exactly: " in out
    assert "questions in unseen wordings answered exactly: " in out
    assert "facts: step " in err
    assert "dialogues: step " in err

    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == sorted((line["phase"] for line in lines), reverse=True)
    for phase in ("facts", "dialogues"):
        losses = [line["loss"] for line in lines if line["phase"] == phase]
        assert losses[-1] < losses[0]
    assert JobConfig.read(run_folder / "config.toml") == demo_job(language, 32, EPOCHS, 0)
    model, tokenizer = fastllm.load(run_folder)
    assert isinstance(fastllm.generate(model, tokenizer, QUESTIONS[language], max_tokens=3), str)


@pytest.mark.parametrize(("rows", "rate"), [(1, 1e-4), (16, 4e-4)])
def test_the_recipe_whose_results_the_readme_shows(rows, rate):
    facts, dialogues = demo_job("en", rows, 7, 3).phases
    assert (facts.learning_rate, facts.schedule, facts.join) == (5e-4, "constant", False)
    assert dialogues.learning_rate == pytest.approx(rate)
    assert (dialogues.schedule, dialogues.join) == (("wsd", True) if rows > 1 else ("constant", False))
    assert {(phase.epochs, phase.rows_per_update) for phase in (facts, dialogues)} == {(7, rows)}


def test_a_folder_in_use_is_refused(folder):
    status, out, err = run(folder, "demo", "--run", "runs/demo-en")
    assert (status, out) == (2, "")
    assert "runs/demo-en is in use; add --resume" in err
    assert len(err.splitlines()) == 1


def test_resuming_a_finished_demo(folder):
    weights = folder / "runs" / "demo-en" / "checkpoint" / "model.safetensors"
    before = weights.read_bytes()
    status, out, err = run(folder, "demo", "--run", "runs/demo-en", "--resume")
    assert status == 0, err
    assert "after training:" in out
    assert weights.read_bytes() == before
    for words in (["--epochs", 3], ["--language", "zh"], ["--seed", 0], ["--rows-per-update", 1]):
        status, out, err = run(folder, "demo", "--run", "runs/demo-en", "--resume", *words)
        assert (status, out) == (2, "")
        assert f"--resume continues a run as it began; got {words[0]} too" in err


def test_no_run_of_another_job_is_taken_for_a_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Job.start(tmp_path / "other", make_job(tmp_path)).train(Recorder())
    status, out, err = run_here(capsys, "demo", "--run", "other", "--resume", "--no-chat")
    assert (status, out) == (2, "")
    assert "demo only continues runs of its own; got one that trains on" in err


@pytest.mark.parametrize(
    "words",
    [
        ["--resume"],
        ["--epochs", 0],
        ["--rows-per-update", 0],
        ["--seed", -1],
        ["--language", "fr"],
        ["--run", "."],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_wrong_use_ends_with_status_2(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    status, out, err = run_here(capsys, "demo", *words)
    assert (status, out) == (2, "")
    assert err.startswith("fastllm: error: ")
    assert len(err.splitlines()) == 1
    assert os.listdir() == ["notes.txt"]


@pytest.mark.parametrize("language", QUESTIONS)
def test_the_question_is_one_of_the_training_data(language):
    """So that the trained model's answer can be checked by eye against what it was taught."""
    assert QUESTIONS[language] in resolve(f"fastllm:{language}/dialogues.jsonl").read_text(encoding="utf-8")
