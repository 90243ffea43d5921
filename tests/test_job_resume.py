"""Jobs: interruption at any moment, and going on as if nothing had been."""

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys

import pytest
from training_jobs import DIALOGUE_STEPS, FACTS, Recorder, finished, make_job, make_text_job, place, stop_at

from fastllm import atomic
from fastllm.errors import ConfigError, DataError, FormatError
from fastllm.training import job as job_module
from fastllm.training import run as run_module
from fastllm.training.job import Interrupted, Job
from fastllm.training.session import describe


@pytest.fixture
def config(tmp_path):
    return make_job(tmp_path)


@pytest.fixture
def uninterrupted(tmp_path, config):
    Job.start(tmp_path / "whole", config).train(Recorder())
    return finished(tmp_path / "whole")


def test_same_config_gives_same_bits(tmp_path, config, uninterrupted):
    Job.start(tmp_path / "again", config).train(Recorder())
    assert finished(tmp_path / "again") == uninterrupted


PLACES = [
    ("facts", 1),  # before the first line of metrics
    ("facts", 6),  # in the middle of an epoch
    ("facts", 8),  # at its end
    ("facts", FACTS),
    ("dialogues", 1),
    ("dialogues", DIALOGUE_STEPS),
]


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


def test_a_folder_that_is_moved_meanwhile(tmp_path, config, uninterrupted):
    def move_and_press(phase, step):
        if (phase, step) == ("facts", 5):
            (tmp_path / "run").rename(tmp_path / "moved")
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="go on with"):
        Job.start(tmp_path / "run", config).train(Recorder(move_and_press))
    Job.resume(tmp_path / "run").train(Recorder())
    assert finished(tmp_path / "run")[1] == uninterrupted[1]


def test_a_folder_that_is_moved_before_a_line_of_metrics(tmp_path, config, uninterrupted):
    def move(phase, step):
        if (phase, step) == ("facts", 3):  # after the next, there is a line
            (tmp_path / "new" / "run").rename(tmp_path / "moved")
            (tmp_path / "new").rmdir()

    job = Job.start(tmp_path / "new" / "run", dataclasses.replace(config, checkpoint_seconds=1000.0))
    job.train(Recorder(move))
    assert finished(tmp_path / "new" / "run")[1] == uninterrupted[1]
    assert Job.resume(tmp_path / "new" / "run").is_done


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_terminal_that_is_closed_sends_sighup_twice(tmp_path, config, monkeypatch):
    """From the shell and from the system: the second, while the update is finished, must not break it off."""
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)  # also where it is ignored, after nohup

    def close(phase, step):
        if (phase, step) == ("facts", 5):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)

    with pytest.raises(Interrupted, match="stopped at step 5") as stop:
        Job.start(tmp_path / "run", config).train(Recorder(close))
    assert stop.value.signal == signal.SIGHUP
    assert place(tmp_path / "run") == ("facts", 5)


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
    """Resuming with other data would give batches that no uninterrupted run could have had."""
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
    """Only the contents count; and validation data may change."""
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
    """A lock belongs to an open file, so a second one in this process acts like another process's."""
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
    (tmp_path / "run" / f".metrics.jsonl.{atomic._place}-{dead.pid}-012345-0.work.tmp").write_bytes(b"half")
    (tmp_path / "run" / ".notes.tmp").write_text("mine")
    Job.resume(tmp_path / "run").train(Recorder())
    assert sorted(os.listdir(tmp_path / "run")) == [".notes.tmp", "checkpoint", "config.toml", "metrics.jsonl"]


class Killed(BaseException):
    """The process ends here, without a word."""


@pytest.mark.parametrize(("phase", "step"), PLACES)
def test_killed_and_resumed_is_uninterrupted(tmp_path, config, uninterrupted, phase, step):
    """It continues from the last checkpoint; later lines of metrics are written again."""

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
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 2))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


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


def test_a_tokenizer_that_has_begun_stays_as_it_is(tmp_path, config):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    path = tmp_path / "run" / "config.toml"
    assert 'type = "word"' in path.read_text()
    path.write_text(path.read_text().replace('type = "word"', 'type = "character"'))
    job = Job.resume(tmp_path / "run")
    [note] = job.notes
    assert "tokenizer stays word, not character" in note
    assert "(words)" in describe(job)


def test_a_phase_more(tmp_path, config):
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at("facts", 6))
    path = tmp_path / "run" / "config.toml"
    text = path.read_text()
    path.write_text(text + text[text.rindex("[[phases]]") :].replace('name = "dialogues"', 'name = "more"'))
    with pytest.raises(ConfigError, match=r"a run must keep its phases; got 3 in config\.toml, where there were 2"):
        Job.resume(tmp_path / "run")


def test_a_line_of_metrics_is_there_whole_or_not_at_all(tmp_path, config, monkeypatch):
    run = Job.start(tmp_path / "run", config).run
    run.log({"a": 1})
    before = run.metrics.read_bytes()

    class FullDisk(io.FileIO):
        def write(self, line):
            return super().write(line[: len(line) // 2])

    monkeypatch.setattr(run_module, "open", lambda path, mode, buffering: FullDisk(path, mode), raising=False)
    with pytest.raises(OSError, match="could not be written"):
        run.log({"b": 2})
    assert run.metrics.read_bytes() == before


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


def test_a_text_is_resumed_to_the_bit(tmp_path):
    text_config = make_text_job(tmp_path)
    Job.start(tmp_path / "whole", text_config).train(Recorder())
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", text_config).train(stop_at("text", 3))
    Job.resume(tmp_path / "run").train(Recorder())
    assert finished(tmp_path / "run") == finished(tmp_path / "whole")
