"""Jobs: run folders, interruption at any moment, and going on as if nothing had been."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tomllib
import types

import numpy as np
import pytest
from converting import own
from training_jobs import DIALOGUES, Recorder, make_job, stop_at, write_lines

import fastllm
from fastllm.checkpoint import find_checkpoint, load_progress, read_arrays
from fastllm.datasets import TokenStream
from fastllm.errors import ConfigError, DataError, FormatError, TrainingError
from fastllm.layers.score import Score
from fastllm.training import job as job_module
from fastllm.training import source
from fastllm.training.config import JobConfig
from fastllm.training.job import Interrupted, Job
from fastllm.training.source import resolve

FACTS, DIALOGUE_STEPS = 16, 8


def finished(folder):
    """Everything a run leaves behind but times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["tokens_per_second"]
    arrays = {
        file: {name: array.tobytes() for name, array in read_arrays(folder / "checkpoint" / file).items()}
        for file in ("model.safetensors", "optimizer.safetensors")
    }
    return lines, arrays, load_progress(folder)


@pytest.fixture
def config(tmp_path):
    return make_job(tmp_path)


@pytest.fixture
def uninterrupted(tmp_path, config):
    Job.start(tmp_path / "whole", config).train(Recorder())
    return finished(tmp_path / "whole")


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


def test_same_config_gives_same_bits(tmp_path, config, uninterrupted):
    Job.start(tmp_path / "again", config).train(Recorder())
    assert finished(tmp_path / "again") == uninterrupted


def test_vocabulary_is_of_training_data_alone(tmp_path):
    config = make_job(tmp_path)
    write_lines(tmp_path / "validation.jsonl", [{"text": "unseenword."}])
    tables = tomllib.loads(config.to_toml())
    tables["phases"] = [{**tables["phases"][0], "validation": str(tmp_path / "validation.jsonl")}]
    job = Job.start(tmp_path / "run", JobConfig.from_dict(tables))
    assert "unseenword" not in job.tokenizer.tokens


# Interruption


def place(folder):
    """Phase and step of the checkpoint."""
    progress = load_progress(folder)
    return progress["phase"], progress["step"]


PLACES = [
    ("facts", 1),  # before the first line of metrics
    ("facts", 6),  # in the middle of an epoch
    ("facts", 8),  # at its end
    ("facts", FACTS),
    ("dialogues", 1),
    ("dialogues", DIALOGUE_STEPS),
]


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


@pytest.mark.parametrize(("phase", "step"), PLACES[:-1])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, config, uninterrupted, phase, step):
    """Weights, moments, progress and metrics."""
    with pytest.raises(Interrupted, match=f"stopped at step {step} of phase {phase}.*--resume"):
        Job.start(tmp_path / "run", config).train(stop_at(phase, step))
    assert place(tmp_path / "run") == (phase, step)
    job = Job.resume(tmp_path / "run")
    job.train(Recorder())
    lines, arrays, progress = finished(tmp_path / "run")
    assert (arrays, progress) == uninterrupted[1:]
    assert lines == uninterrupted[0]


@pytest.mark.parametrize("step", [4, FACTS])
def test_stopped_in_a_validation(tmp_path, config, uninterrupted, monkeypatch, step):
    """It is not waited for: who goes on begins with it."""
    job, whole = Job.start(tmp_path / "run", config), job_module.scores

    def interrupted(*arguments):
        for score in whole(*arguments):
            if job._trainer.step == step:
                os.kill(os.getpid(), 2)
            yield score
            assert job._trainer.step != step, "went on"

    monkeypatch.setattr(job_module, "scores", interrupted)
    with pytest.raises(Interrupted, match=f"stopped at step {step} of phase facts"):
        job.train(Recorder())
    monkeypatch.undo()
    Job.resume(tmp_path / "run").train(Recorder())
    assert finished(tmp_path / "run") == uninterrupted


def test_stopped_in_the_last_validation(tmp_path, monkeypatch):
    config = make_job(tmp_path)
    config = dataclasses.replace(config, phases=config.phases[:1])
    recorder = stop_at("facts", FACTS)
    with pytest.raises(Interrupted, match=f"stopped at step {FACTS}"):
        Job.start(tmp_path / "run", config).train(recorder)
    job = Job.resume(tmp_path / "run")
    assert not job.is_done
    recorder = Recorder()
    job.train(recorder)
    assert [record["step"] for record in recorder.records] == [FACTS] and not recorder.steps
    assert "validation_loss" in recorder.records[0]
    assert Job.resume(tmp_path / "run").is_done


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


def test_stopped_after_every_update(tmp_path, config, uninterrupted):
    job = Job.start(tmp_path / "run", config)
    for phase, steps in (("facts", FACTS), ("dialogues", DIALOGUE_STEPS - 1)):
        for step in range(1, steps + 1):
            with pytest.raises(Interrupted):
                job.train(stop_at(phase, step))
            job = Job.resume(tmp_path / "run")
    assert not job.is_done
    job.train(stop_at("dialogues", DIALOGUE_STEPS))  # nothing is left then, so it is no interruption
    assert Job.resume(tmp_path / "run").is_done
    assert finished(tmp_path / "run")[1:] == uninterrupted[1:]


@pytest.mark.parametrize("name", ["facts.jsonl", "dialogues.jsonl"])
def test_data_that_has_changed_is_noticed(tmp_path, config, name):
    """Its batches would be others, and no run from the beginning would have had them."""
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    before = (tmp_path / name).read_bytes()
    for changed in (before * 2, before.replace(b"honey", b"money"), before.splitlines(keepends=True)[0]):
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(DataError, match=rf"must stay as it is; got .*{name}, which has changed.*--model .*run$"):
            Job.resume(tmp_path / "run")
    (tmp_path / name).write_bytes(before)
    Job.resume(tmp_path / "run").train(Recorder())


def test_data_may_move(tmp_path, config):
    """What counts is what is in it; and what it is validated on may change."""
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    (tmp_path / "facts.jsonl").rename(tmp_path / "elsewhere.jsonl")
    path = tmp_path / "run" / "config.toml"
    text = path.read_text().replace("facts.jsonl", "elsewhere.jsonl")
    path.write_text(text.replace("validation = ", "# validation = "))
    Job.resume(tmp_path / "run").train(Recorder())


@pytest.mark.skipif(os.name != "posix", reason="Windows has other locks")
def test_a_job_that_another_process_has_overtaken(tmp_path, config):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    one, other = (Job.resume(tmp_path / "run") for _ in range(2))
    one.train(Recorder())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="where another has since; go on with --resume"):
        other.train(Recorder())
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines


def test_a_checkpoint_from_before_data_was_looked_at(tmp_path, config):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    path = tmp_path / "run" / "checkpoint" / "progress.json"
    progress = json.loads(path.read_text())
    assert progress.pop("data")
    path.write_text(json.dumps(progress))
    Job.resume(tmp_path / "run").train(Recorder())


@pytest.mark.skipif(os.name != "posix", reason="Windows has other locks")
def test_one_process_at_a_time(tmp_path, config):
    """A lock is of an open file, so a second one in this process stands for another's."""
    job = Job.start(tmp_path / "run", config)
    tried = []

    def try_too(phase, step):
        for again in (lambda: Job.resume(tmp_path / "run"), lambda: job.train(Recorder())):
            with pytest.raises(ConfigError, match="one process at a time trains in a run folder; got"):
                again()
        tried.append(step)

    job.train(Recorder(try_too))
    assert len(tried) == FACTS + DIALOGUE_STEPS
    assert Job.resume(tmp_path / "run").is_done


def test_what_a_killed_process_left_goes(tmp_path, config):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "run" / f".metrics.jsonl.{dead.pid}.work.tmp").write_bytes(b"half")
    (tmp_path / "run" / ".notes.tmp").write_text("mine")
    Job.resume(tmp_path / "run").train(Recorder())
    assert sorted(os.listdir(tmp_path / "run")) == [".notes.tmp", "checkpoint", "config.toml", "metrics.jsonl"]


def test_a_validation_that_is_not_finite_ends_it(tmp_path, config, monkeypatch):
    """Before a line is written that is no JSON."""
    monkeypatch.setattr("fastllm.training.job.scores", lambda *_: [Score(math.nan, 0, 5)])
    with pytest.raises(TrainingError, match="the validation loss must stay finite; got nan after step 4"):
        Job.start(tmp_path / "run", config).train(Recorder())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


class Killed(BaseException):
    """The process ends here, without a word."""


@pytest.mark.parametrize(("phase", "step"), PLACES)
def test_killed_and_resumed_is_uninterrupted(tmp_path, config, uninterrupted, phase, step):
    """Goes on from the last checkpoint; lines of metrics behind it are written again."""

    def die(at_phase, at_step):
        if (at_phase, at_step) == (phase, step):
            raise Killed

    with pytest.raises(Killed):
        Job.start(tmp_path / "run", config).train(Recorder(die))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"phase": "facts", "st')  # cut short
    Job.resume(tmp_path / "run").train(Recorder())
    assert finished(tmp_path / "run") == uninterrupted


def test_killed_while_the_checkpoint_is_written(tmp_path, config, uninterrupted, monkeypatch):
    save, calls = job_module.save_tuned, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            monkeypatch.setattr("fastllm.formats.model_folder._flush", die)
        save(*arguments)

    def die(folder):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "save_tuned", dying)
        with pytest.raises(Killed):
            Job.start(tmp_path / "run", config).train(Recorder())
        monkeypatch.undo()
    Job.resume(tmp_path / "run").train(Recorder())
    assert finished(tmp_path / "run") == uninterrupted


def test_resuming_a_finished_run_changes_nothing(tmp_path, config, uninterrupted):
    job = Job.resume(tmp_path / "whole")
    assert job.is_done
    job.train(Recorder())
    assert finished(tmp_path / "whole") == uninterrupted


def test_signal_handlers_come_back(tmp_path, config):
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 2))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


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


@pytest.mark.parametrize("line", ['{"phase": "facts", "step": "x"}', '{"phase": "facts"}', "[" * 10**5, "\udcff", "{"])
def test_damaged_lines_of_metrics_are_dropped(tmp_path, config, line):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    path = tmp_path / "run" / "metrics.jsonl"
    before = path.read_text()
    path.write_bytes(before.encode() + line.encode(errors="surrogateescape") + b"\n")
    Job.resume(tmp_path / "run")
    assert path.read_text() == before


@pytest.mark.parametrize("sums", [None, [], {"updates": "x"}, {"loss": math.nan}, {"tokens": -5}, {"more": 1}])
def test_damaged_sums_of_metrics(tmp_path, config, sums):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    path = tmp_path / "run" / "checkpoint" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"since_last_line": sums}))
    with pytest.raises(FormatError, match=r"must hold the sums of its metrics; got an error: .*start a new run"):
        Job.resume(tmp_path / "run")


def test_a_model_that_has_begun_stays_as_it_is(tmp_path, config):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    assert not Job.resume(tmp_path / "run").notes
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text().replace("dropout = 0.1", "dropout = 0.3"))
    [note] = Job.resume(tmp_path / "run").notes
    assert "dropout = 0.1, not 0.3" in note


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


def test_nothing_to_resume(tmp_path, config):
    with pytest.raises(FileNotFoundError, match=r"a run folder holds config\.toml"):
        Job.resume(tmp_path / "missing")
    job = Job.start(tmp_path / "run", config)
    resumed = Job.resume(tmp_path / "run")  # killed before the first checkpoint
    assert resumed.model.parameters.flat.tobytes() == job.model.parameters.flat.tobytes()


@pytest.mark.parametrize(
    "progress", [{}, [], {"phase": "other", "step": 1}, {"phase": "facts", "step": -1}, {"phase": "facts", "step": "1"}]
)
def test_resume_with_progress_of_another_job(tmp_path, config, progress):
    Job.start(tmp_path / "run", config).train(Recorder())
    (tmp_path / "run" / "checkpoint" / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(FormatError, match="progress"):
        Job.resume(tmp_path / "run")


# Texts


@pytest.fixture
def text_config(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"Line {i} of a text. " for i in range(40)))
    phase = {"name": "text", "data": str(tmp_path / "text.txt"), "steps": 6, "learning_rate": 1e-2,
             "sequence_length": 10, "rows_per_update": 2}  # fmt: skip
    return make_job(tmp_path, tokenizer={"type": "character"}, phases=[phase])


def test_a_text_keeps_its_last_tenth_for_validation(tmp_path, text_config):
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


def test_a_text_is_resumed_to_the_bit(tmp_path, text_config):
    Job.start(tmp_path / "whole", text_config).train(Recorder())
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", text_config).train(stop_at("text", 3))
    Job.resume(tmp_path / "run").train(Recorder())
    assert finished(tmp_path / "run") == finished(tmp_path / "whole")


def test_shipped_data_is_found():
    for language in ("en", "zh"):
        for name in ("facts", "dialogues", "validation"):
            assert resolve(f"fastllm:{language}/{name}.jsonl").is_file()
    assert resolve("x/y.jsonl").parts == ("x", "y.jsonl")
    assert DIALOGUES
