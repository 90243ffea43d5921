"""What `fastllm train` says of its data and of how it goes on, so that nobody is surprised by what was learnt."""

import errno
import io
import json
import os

import pytest
from training_jobs import make_job, make_text_job, place, write_lines

from fastllm.cli import main
from fastllm.training.job import Job
from fastllm.training.progress import Progress

LISTS = [
    {"messages": [{"role": "user", "content": "List\n."}, {"role": "assistant", "content": "1. one\n2. two"}]},
    {"messages": [{"role": "user", "content": "List.\n"}, {"role": "assistant", "content": "one  two"}]},
    {"messages": [{"role": "user", "content": "A\tb?"}, {"role": "assistant", "content": "one two"}]},
    {"text": "a\tb"},
]


def notes(folder, **changes):
    job = Job.start(folder / "run", make_job(folder, **changes))
    return "\n".join(job.notes)


def phase(data, **more):
    return [{"name": "p", "data": data, "epochs": 1, "learning_rate": 1e-3, **more}]


def test_white_space_that_words_forget(tmp_path):
    data = write_lines(tmp_path / "lists.jsonl", LISTS)
    said = notes(tmp_path, phases=phase(data))
    assert f"white space other than single spaces is not learnt of 3 texts of {data}" in said


def test_white_space_of_a_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("A title\n\n    some words here " * 20)
    said = notes(tmp_path, phases=phase(str(path), join=True))
    assert f"white space other than single spaces is not learnt of 1 text of {path}" in said
    assert said.count("join does nothing") == 1


@pytest.mark.parametrize(("words", "is_short"), [(4, True), (40, False)])
def test_a_text_shorter_than_the_context(tmp_path, words, is_short):
    path = tmp_path / "text.txt"
    path.write_text("some words are here " * (words // 4))
    said = notes(tmp_path, phases=phase(str(path)))
    assert (f"{path} is too short for sequences of 16 tokens: they have 3" in said) == is_short


def test_nothing_is_said_where_it_is_kept(tmp_path):
    data = write_lines(tmp_path / "lists.jsonl", LISTS)
    assert "white space" not in notes(tmp_path, phases=phase(data), tokenizer={"type": "byte"})


def test_options_that_do_less_than_they_say(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some words here " * 20)
    said = notes(tmp_path, phases=phase(str(path), sequence_length=99, join=True))
    assert "sequence_length 99 is cut to the model's context of 16 tokens" in said
    assert f"join does nothing with {path}" in said


def test_files_of_a_folder_that_are_not_read(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("some words here " * 20)
    for name in ("b.py", "c", ".hidden", "d.jsonl"):
        (folder / name).write_text("x")
    said = notes(tmp_path, phases=phase(str(folder)), tokenizer={"type": "byte"})
    assert "1 text file, 320 characters; 1 file of JSON not read" in said
    assert "2 other files not read: only .txt" in said


def test_each_line_of_progress_has_the_last_validation_loss(tmp_path, capsys):
    config = make_job(tmp_path)
    progress = Progress()
    progress.begin(config.phases[0], 0, 100)
    record = {"loss": 2.0, "accuracy": 0.5, "tokens_per_second": 1000.0}
    progress.log({**record, "step": 10})
    progress.log({**record, "step": 15, "validation_loss": 1.5})
    progress.log({**record, "step": 20})
    progress.begin(config.phases[1], 0, 100)
    progress.log({**record, "step": 10})
    lines = capsys.readouterr().err.splitlines()
    assert [", validation 1.500, " in line for line in lines] == [False, True, False]


class _Terminal(io.StringIO):
    """Standard error until a phase begins; then it is closed."""

    is_gone = False

    def write(self, text):
        if self.is_gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(text)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_training_goes_on_where_nobody_sees_its_progress(tmp_path, monkeypatch, is_terminal):
    stream = _Terminal()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress()
    begin = progress.begin

    def begin_and_close(*phase):
        begin(*phase)
        stream.is_gone = True

    monkeypatch.setattr(progress, "begin", begin_and_close)
    job = Job.start(tmp_path / "run", make_text_job(tmp_path))
    job.train(progress)
    assert job.is_done
    assert place(tmp_path / "run") == ("text", 6)


def test_no_time_is_left_of_a_phase_that_is_beyond_its_steps(tmp_path, capsys):
    """As after config.toml was given fewer steps than the run has made."""
    progress = Progress()
    progress.begin(make_job(tmp_path).phases[0], 20, 10)
    progress.log({"loss": 2.0, "accuracy": 0.5, "tokens_per_second": 1000.0, "step": 20})
    assert ", 0 s left" in capsys.readouterr().err


def test_a_vocabulary_size_beside_a_tokenizer_that_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some words here " * 20)
    (tmp_path / "tokenizer.json").write_text(json.dumps({}))
    words = ["train", "text.txt", "--tokenizer", "tokenizer.json", "--vocab-size", "99"]
    assert main(words) == 2
    assert "--vocab-size is for a new tokenizer" in capsys.readouterr().err


def test_a_jobs_file_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "nope.toml"]) == 1
    assert "there must be a job's TOML file at nope.toml" in capsys.readouterr().err
