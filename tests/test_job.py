"""Jobs: what a run is made of and leaves, and what ends it or keeps it from beginning."""

import math
import os
import tomllib
import types

import numpy as np
import pytest
from converting import own
from training_jobs import (
    DIALOGUE_STEPS,
    DIALOGUES,
    FACTS,
    Recorder,
    finished,
    make_job,
    make_text_job,
    place,
    write_lines,
)

import fastllm
from fastllm.checkpoint import find_checkpoint
from fastllm.datasets import TokenStream
from fastllm.errors import ConfigError, DataError, TrainingError
from fastllm.layers.score import Score
from fastllm.training import job as job_module
from fastllm.training import source
from fastllm.training.config import JobConfig
from fastllm.training.job import Job
from fastllm.training.source import resolve


@pytest.fixture
def config(tmp_path):
    return make_job(tmp_path)


class Plan:
    """As much of a phase as its calendar looks at."""

    def __init__(self, dataset, steps, evaluate_every=None, validation="some"):
        self.dataset, self.steps, self.validation = dataset, steps, validation
        self.config = types.SimpleNamespace(evaluate_every=evaluate_every)

    validate_every = job_module.Phase.validate_every


def test_when_metrics_and_validation_are_due():
    """As docs/training.md has it: each epoch of examples, every two-hundredth of a text's steps."""
    text = TokenStream(np.arange(100), 4)
    calendar = job_module._Calendar(Plan(text, 1000))
    steps = range(1, 1001)
    assert [step for step in steps if calendar.is_due(step)] == [*range(5, 1001, 5)]
    assert [step for step in steps if calendar.is_validation_due(step)] == [*range(50, 1001, 50)]
    calendar = job_module._Calendar(Plan(text, 1001, evaluate_every=300))
    assert [step for step in range(1, 1002) if calendar.is_validation_due(step)] == [300, 600, 900, 1001]
    assert calendar.is_due(1001)
    calendar = job_module._Calendar(Plan(text, 50, validation=None))
    assert all(calendar.is_due(step) and not calendar.is_validation_due(step) for step in range(1, 51))


def test_a_text_that_several_phases_read_is_encoded_once(tmp_path, monkeypatch):
    """Its file is mapped: on Windows, it could not be written again."""
    (tmp_path / "text.txt").write_text("the sun is far. " * 40, encoding="utf-8")
    written, write = [], source.write_token_file
    monkeypatch.setattr(source, "write_token_file", lambda path, *rest: written.append(path) or write(path, *rest))
    phase = {"data": str(tmp_path / "text.txt"), "steps": 1, "rows_per_update": 2, "learning_rate": 1e-3}
    second = {**phase, "name": "b", "validation": str(tmp_path / "text.txt")}
    Job.start(tmp_path / "run", make_job(tmp_path, phases=[{**phase, "name": "a"}, second])).train(Recorder())
    assert len(written) == 1


# What a run leaves


def test_run_folder(tmp_path, config):
    job = Job.start(tmp_path / "run", config)
    recorder = Recorder()
    assert not job.is_done
    job.train(recorder)
    assert job.is_done
    assert recorder.phases == [("facts", 0, FACTS), ("dialogues", 0, DIALOGUE_STEPS)]
    assert [done.step for done in recorder.steps] == [*range(1, FACTS + 1), *range(1, DIALOGUE_STEPS + 1)]
    folder = tmp_path / "run"
    assert sorted(os.listdir(folder)) == ["checkpoint", "config.toml", "metrics.jsonl"]
    assert JobConfig.read(folder / "config.toml") == config
    lines, _, progress = finished(folder)
    assert (progress["phase"], progress["step"]) == ("dialogues", DIALOGUE_STEPS)
    assert {"phase", "epoch", "step", "tokens", "loss", "perplexity", "accuracy", "gradient_norm",
            "learning_rate"} <= lines[0].keys()  # fmt: skip
    assert "validation_loss" in lines[0]
    assert lines[-1]["phase"] == "dialogues"
    assert sum(line["tokens"] for line in lines) == sum(done.tokens for done in recorder.steps)
    model, tokenizer = fastllm.load(folder, backend="numpy")
    assert model.parameters.flat.tobytes() == job.model.parameters.flat.tobytes()
    assert tokenizer.decode(tokenizer.encode("Bees like honey.")) == "Bees like honey."


def test_metrics_are_means_over_the_updates_since_the_line_before(tmp_path, config):
    job = Job.start(tmp_path / "run", config)
    recorder = Recorder()
    job.train(recorder)
    assert [record["step"] for record in recorder.records] == [4, 8, 12, 16, *range(1, 9)]
    left = recorder.steps.copy()
    for record in recorder.records:
        count = 4 if record["phase"] == "facts" else 1
        steps, left = left[:count], left[count:]
        targets = sum(step.score.targets for step in steps)
        assert record["tokens"] == sum(step.tokens for step in steps)
        assert record["loss"] == pytest.approx(sum(step.score.total for step in steps) / targets)
        assert record["accuracy"] == sum(step.score.correct for step in steps) / targets
        assert record["gradient_norm"] == pytest.approx(sum(step.gradient_norm for step in steps) / count)
        assert record["learning_rate"] == steps[-1].learning_rate


def test_vocabulary_is_of_training_data_alone(tmp_path):
    config = make_job(tmp_path)
    write_lines(tmp_path / "validation.jsonl", [{"text": "unseenword."}])
    tables = tomllib.loads(config.to_toml())
    tables["phases"] = [{**tables["phases"][0], "validation": str(tmp_path / "validation.jsonl")}]
    job = Job.start(tmp_path / "run", JobConfig.from_dict(tables))
    assert "unseenword" not in job.tokenizer.tokens


@pytest.mark.parametrize("place", ["run", "run/checkpoint", "run/checkpoint/tokenizer.json"])
def test_a_tokenizer_that_is_there(tmp_path, place):
    tokenizer = fastllm.WordTokenizer.build(["Bees make honey, they like it."])
    own(tmp_path / "run" / "checkpoint", tokenizer)
    job = Job.start(tmp_path / "new", make_job(tmp_path, tokenizer={"path": str(tmp_path / place)}))
    assert job.tokenizer.tokens == tokenizer.tokens
    assert job.model.config.vocab_size == tokenizer.vocab_size
    job.train(Recorder())
    assert fastllm.load(tmp_path / "new")[1].tokens == tokenizer.tokens


def test_phases_on_the_same_data_see_it_in_orders_of_their_own(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Bees make honey and we like it. " * 30)
    phases = [{"name": name, "data": str(text), "steps": 4, "learning_rate": 1e-3} for name in "ab"]
    one, other = Job.start(tmp_path / "run", make_job(tmp_path, phases=phases)).phases
    assert one.seed == 3  # the job's
    assert all((one.dataset.batch(i).tokens != other.dataset.batch(i).tokens).any() for i in range(4))
    assert one.seed != other.seed == Job.start(tmp_path / "again", make_job(tmp_path, phases=phases)).phases[1].seed


def test_validations_of_a_long_text_take_a_tenth_of_the_time(tmp_path):
    (tmp_path / "text.txt").write_text("Bees make honey, and we like it. " * 30_000)
    phase = {"name": "a", "data": str(tmp_path / "text.txt"), "steps": 100, "learning_rate": 1e-3}
    tables = {"tokenizer": {"type": "byte"}, "phases": [phase]}
    job = Job.start(tmp_path / "run", make_job(tmp_path, **tables))
    assert job.phases[0].every == -(-99_000 // job_module.LEAST_VALIDATION) == 7
    assert "a validation reads one batch in 7 of 98,999 tokens" in " ".join(job.notes)
    parts = list(job_module.scores(job.model, job.phases[0].validation, 7))
    assert 99_000 / 7 - 4096 <= sum(score.targets for score in parts) <= 99_000 / 7 + 4096
    tables["phases"] = [{**phase, "evaluate_every": 10}]
    assert Job.start(tmp_path / "all", make_job(tmp_path, **tables)).phases[0].every == 1


def test_a_validation_that_is_not_finite_ends_it(tmp_path, config, monkeypatch):
    """Before a line is written that is no JSON."""
    monkeypatch.setattr("fastllm.training.job.scores", lambda *_: [Score(math.nan, 0, 5)])
    with pytest.raises(TrainingError, match="the validation loss must stay finite; got nan after step 4"):
        Job.start(tmp_path / "run", config).train(Recorder())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# Failures


@pytest.mark.parametrize("step", [6, FACTS])
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, config, step):
    """Which is of the update before."""
    job = Job.start(tmp_path / "run", config)

    def poison(phase, at):
        if at == step - 1:
            job.model.parameters.flat[:5] = np.nan

    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=f"after step {step - 1};"):
        job.train(Recorder(poison))
    assert place(tmp_path / "run") == ("facts", step - 2)
    assert fastllm.load(tmp_path / "run", backend="numpy")


@pytest.mark.parametrize("step", [1, FACTS])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, config, step):
    """An update may break them at the very step after which a checkpoint is due."""
    job = Job.start(tmp_path / "run", config)

    def poison(phase, at):
        if at == step:
            job.model.parameters.flat[:5] = np.inf

    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="finite"):
        job.train(Recorder(poison))
    if step > 1:
        assert place(tmp_path / "run") == ("facts", step - 1)
        assert fastllm.load(tmp_path / "run", backend="numpy")
    else:
        with pytest.raises(FileNotFoundError):
            find_checkpoint(tmp_path / "run" / "checkpoint")


def test_a_folder_in_use(tmp_path, config):
    Job.start(tmp_path / "run", config)
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match="is in use; add --resume"):
        Job.start(tmp_path / "run", make_job(tmp_path, seed=4))
    assert (tmp_path / "run" / "config.toml").read_bytes() == before
    with pytest.raises(ConfigError, match="is in use; choose another"):
        Job.start(tmp_path, config)
    with pytest.raises(ConfigError, match="is in use"):
        Job.start(tmp_path / "facts.jsonl", config)
    if os.name == "posix":
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        with pytest.raises(ConfigError, match="link is in use; choose another"):
            Job.start(tmp_path / "link", config)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", DataError, "must not be empty"),
        (" \n", DataError, "must not be empty"),
        ("x", DataError, r"text.txt: a text needs at least two tokens"),
        (b"\xff\xff", DataError, "must be UTF-8"),
        (None, FileNotFoundError, "text.txt"),
    ],
)
def test_bad_data_leaves_no_folder(tmp_path, content, error, message):
    """Else the next attempt would find it in use."""
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    phase = {"name": "text", "data": str(path), "steps": 3, "learning_rate": 1e-2}
    config = make_job(tmp_path, tokenizer={"type": "character"}, phases=[phase])
    with pytest.raises(error, match=message):
        Job.start(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


# Texts


def test_a_text_keeps_its_last_tenth_for_validation(tmp_path):
    text_config = make_text_job(tmp_path)
    job = Job.start(tmp_path / "run", text_config)
    (phase,) = job.phases
    assert isinstance(phase.dataset, TokenStream)
    text = (tmp_path / "text.txt").read_text()
    assert job.tokenizer.decode(phase.dataset.tokens) + job.tokenizer.decode(phase.validation.tokens) == text
    assert len(phase.validation.tokens) == len(text) // 10
    assert (phase.dataset.length, phase.steps) == (10, 6)
    recorder = Recorder()
    job.train(recorder)
    assert all("validation_loss" in record for record in recorder.records)


def test_shipped_data_is_found():
    for language in ("en", "zh"):
        for name in ("facts", "dialogues", "validation"):
            assert resolve(f"fastllm:{language}/{name}.jsonl").is_file()
    assert resolve("x/y.jsonl").parts == ("x", "y.jsonl")
    assert DIALOGUES
