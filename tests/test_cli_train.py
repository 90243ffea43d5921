"""fastllm train in processes of its own: signals, resuming, wrong use."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_jobs import make_job, write_lines

from fastllm import cli
from fastllm.checkpoint import load_progress, read_arrays
from fastllm.training import session

ROOT = Path(__file__).parents[1]
WEIGHTS = "checkpoint/model.safetensors"


def start(folder, *words, **environment):
    """python -m fastllm, warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastllm", *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *words, **environment):
    """Its exit status, and what it printed."""
    process = start(folder, *words, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run_here(capsys, *words):
    """The same in this process, where nothing has to be imported anew."""
    try:
        status = cli.main([*map(str, words)])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def job_file(tmp_path_factory):
    """A job long enough to be stopped on its way."""
    folder = tmp_path_factory.mktemp("job")
    phase = {"name": "facts", "learning_rate": 1e-2, "epochs": 250, "rows_per_update": 8}
    config = make_job(folder, phases=[{**phase, "data": str(folder / "facts.jsonl")}])
    (folder / "job.toml").write_text(config.to_toml(), encoding="utf-8")
    return folder / "job.toml"


@pytest.fixture(scope="module")
def uninterrupted(job_file):
    status, out, err = run(job_file.parent, "train", "--config", "job.toml", "--run", "whole")
    assert status == 0, err
    assert "run folder: whole" in out
    return job_file.parent / "whole"


def stop_on_the_way(folder, number, *words):
    """Send a signal after some lines of metrics and a checkpoint; the exit status and stderr."""
    process = start(folder, *words)
    run_folder = folder / words[-1]
    while process.poll() is None:
        lines = run_folder / "metrics.jsonl"  # the first checkpoint may be there before the first line
        if (run_folder / WEIGHTS).exists() and lines.exists() and len(lines.read_bytes().splitlines()) > 20:
            process.send_signal(number)
            break
        time.sleep(0.01)
    err = process.communicate(timeout=60)[1]
    return process.returncode, err


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_stopped_and_resumed_gives_the_same_weights(tmp_path, job_file, uninterrupted, name):
    number = getattr(signal, name)
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("ignored here, as after nohup")
    status, err = stop_on_the_way(tmp_path, number, "train", "--config", job_file, "--run", "run")
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in err
    stopped_at = load_progress(tmp_path / "run")["step"]
    assert 0 < stopped_at < 500
    if status > 0:
        assert f"stopped at step {stopped_at} of phase facts" in err.splitlines()[-1]
        assert metrics(tmp_path / "run")[-1]["step"] <= stopped_at

    status, _, err = run(tmp_path, "train", "--run", "run", "--resume")
    assert status == 0, err
    for parameter, array in read_arrays(uninterrupted / WEIGHTS).items():
        assert read_arrays(tmp_path / "run" / WEIGHTS)[parameter].tobytes() == array.tobytes(), parameter
    steps = [line["step"] for line in metrics(tmp_path / "run")]
    assert steps == [line["step"] for line in metrics(uninterrupted)]


def test_run_folder(uninterrupted):
    assert sorted(os.listdir(uninterrupted)) == ["checkpoint", "config.toml", "loss.svg", "metrics.jsonl"]
    assert sorted(os.listdir(uninterrupted / "checkpoint")) == [
        "config.json", "generation_config.json", "model.safetensors", "optimizer.safetensors", "progress.json",
        "tokenizer.json",
    ]  # fmt: skip
    assert metrics(uninterrupted)[-1]["loss"] < metrics(uninterrupted)[0]["loss"]


def test_resuming_what_is_complete(uninterrupted, capsys):
    status, out, _ = run_here(capsys, "train", "--run", uninterrupted, "--resume")
    assert status == 0
    assert "is complete; nothing is left to train" in out


def test_a_complete_run_without_its_curve(uninterrupted, capsys):
    """As it is where the process was killed before it drew it."""
    (uninterrupted / "loss.svg").unlink()
    status, _, _ = run_here(capsys, "train", "--run", uninterrupted, "--resume")
    assert status == 0
    assert (uninterrupted / "loss.svg").exists()


def test_the_curve_of_a_run_whose_output_nobody_reads(uninterrupted, monkeypatch):
    """As in `fastllm train ... | head -1`."""

    def gone(records):
        raise BrokenPipeError

    (uninterrupted / "loss.svg").unlink()
    monkeypatch.setattr(session, "draw", gone)
    with pytest.raises(BrokenPipeError):
        session.plot(uninterrupted / "metrics.jsonl", uninterrupted / "loss.svg")
    assert (uninterrupted / "loss.svg").exists()


OTHERS = [["--steps", 50], ["--seed", 0], ["--learning-rate", 0], ["--lora"], ["--validation", "x"], ["x.txt"]]


@pytest.mark.parametrize("words", OTHERS, ids=str)
@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_what_goes_with_run_alone(job_file, uninterrupted, capsys, words, option):
    given = ["--config", job_file] if option == "--config" else ["--resume"]
    status, _, err = run_here(capsys, "train", *given, "--run", uninterrupted, *words)
    assert status == 2
    if words == ["x.txt"]:
        assert "got both" in err or "got a data file too; drop it" in err
    else:
        assert f"{option} goes with --run alone" in err
        assert f"got {words[0]} too; drop it" in err


def test_a_job_is_no_data(job_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_here(capsys, "train", job_file)
    assert status == 2
    assert f"a job's file goes with --config; got {job_file} as data" in err


@pytest.mark.parametrize("words", [[".."], ["."], ["../one.txt", "--run", "new/../../exp"]], ids=str)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, None])
def test_nothing_of_others_goes_with_a_run_that_fails(tmp_path, monkeypatch, capsys, words, failure):
    """Whatever the folder is called: its own, its parent, by way of one that is not there yet."""
    here = tmp_path / "exp"
    here.mkdir()
    (here / "thesis.txt").write_text("precious words, and more of them")
    (tmp_path / "one.txt").write_text("a")
    monkeypatch.chdir(here)
    if failure:

        def interrupt(*arguments):
            raise failure

        monkeypatch.setattr("fastllm.training.source.write_token_file", interrupt)
    status, _, err = run_here(capsys, "train", *words, "--steps", 1, "--preset", "rustgpt")
    assert (here / "thesis.txt").read_text() == "precious words, and more of them"
    assert (tmp_path / "one.txt").read_text() == "a"
    assert not (here / "config.toml").exists()
    if "--run" in words:
        assert status == 2
        assert "a new run needs an empty folder" in err
    elif failure:
        assert status == 130
        assert not any((here / "runs").iterdir())
    else:
        assert status == 0, err
        [run_folder] = (here / "runs").iterdir()
        assert run_folder.name == {".": "exp", "..": tmp_path.name}[words[0]]


def test_names_that_are_no_text(tmp_path, monkeypatch, capsys):
    name = os.fsdecode(b"caf\xe9.txt")
    monkeypatch.chdir(tmp_path)
    try:
        Path(name).write_text("some text to learn. " * 20)
    except (OSError, UnicodeError):
        pytest.skip("this system's file names are text")
    status, _, err = run_here(capsys, "train", name)
    assert status == 2
    assert "names in a job must be UTF-8" in err
    assert os.listdir(".") == [name]


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX's")
def test_a_disk_that_is_full_of_tokens(tmp_path, monkeypatch, capsys):
    import resource

    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("some text to learn. " * 2000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        status, _, err = run_here(capsys, "train", "long.txt", "--preset", "rustgpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert ".tokens.npy could not be written: File too large" in err
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX's")
def test_a_disk_that_is_full_when_a_run_begins(tmp_path, monkeypatch, capsys):
    import resource

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text to learn")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status, _, err = run_here(capsys, "train", "text.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert "config.toml could not be written: File too large" in err
    assert not any((tmp_path / "runs").iterdir())


def test_train_on_a_file_and_on_a_folder(tmp_path, monkeypatch, capsys):
    """Runs are numbered, and the file's name is theirs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("some text to learn. " * 20)
    lines = write_lines(tmp_path / "lines.jsonl", [{"text": "one two three"}, {"text": "two three one"}])
    jobs = (["texts", "--steps", 2], [lines, "--epochs", 2], ["texts/a.txt", "--steps", 1], ["texts", "--steps", 1])
    for words in jobs:
        status, _, err = run_here(capsys, "train", *words, "--preset", "rustgpt")
        assert status == 0, err
    assert sorted(os.listdir("runs")) == ["a", "lines", "texts", "texts-2"]
    assert metrics(tmp_path / "runs" / "texts")[-1]["step"] == 2
    assert metrics(tmp_path / "runs" / "lines")[-1]["epoch"] == 2


WRONG_USE = {
    "nothing": [],
    "data and config": ["text.txt", "--config", "job.toml"],
    "steps and epochs": ["text.txt", "--steps", 3, "--epochs", 3],
    "resume without a run": ["--resume"],
    "resume with data": ["text.txt", "--run", "x", "--resume"],
    "no steps": ["text.txt", "--steps", 0],
    "no rows": ["text.txt", "--rows-per-update", 0],
    "no rate": ["text.txt", "--learning-rate", 0],
    "rate of letters": ["text.txt", "--learning-rate", "fast"],
    "negative seed": ["text.txt", "--seed", -1],
    "large seed": ["text.txt", "--seed", 2**32],
    "preset": ["text.txt", "--preset", "gtp2"],
    "tokenizer": ["text.txt", "--tokenizer", "words"],
    "empty tokenizer": ["text.txt", "--tokenizer", ""],
    "no vocabulary": ["text.txt", "--vocab-size", 0],
    "vocabulary without its bytes": ["text.txt", "--tokenizer", "byte", "--vocab-size", 100],
    "model and vocabulary": ["text.txt", "--model", "x.gguf", "--vocab-size", 500],
    "option": ["text.txt", "--stepz", 3],
    "folder in use": ["text.txt", "--run", "."],
    "unknown key": ["--config", "unknown.toml"],
    "no TOML": ["--config", "text.txt"],
}


@pytest.mark.parametrize("words", WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use_ends_with_status_2(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text = 3 to learn")
    (tmp_path / "unknown.toml").write_text("sead = 3")
    status, out, err = run_here(capsys, "train", *words)
    assert (status, out) == (2, "")
    assert err.startswith("fastllm: error: ")
    assert len(err.splitlines()) == 1
    assert sorted(os.listdir()) == ["text.txt", "unknown.toml"]


FAILURES = {
    "missing data": ["missing.txt"],
    "missing config": ["--config", "missing.toml"],
    "missing run": ["--run", "missing", "--resume"],
    "empty text": ["empty.txt"],
    "one token": ["one.txt"],
    "no UTF-8": ["binary.txt"],
    "wrong line": ["wrong.jsonl"],
    "folder without text": ["folder"],
    "missing validation": ["text.txt", "--validation", "missing.txt"],
    "empty validation": ["text.txt", "--validation", "empty.txt"],
}


@pytest.mark.parametrize("words", FAILURES.values(), ids=FAILURES)
def test_failures_end_with_status_1_and_one_line(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    files = {"text.txt": b"some text", "empty.txt": b"", "one.txt": b"x", "binary.txt": b"\xff", "wrong.jsonl": b"{"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    status, out, err = run_here(capsys, "train", *words)
    assert (status, out) == (1, "")
    assert err.startswith("fastllm: error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists() or not os.listdir("runs")


def test_a_run_folder_that_can_not_be_written(tmp_path, monkeypatch, capsys):
    """Simulated: the system's own refusal does not stop everyone (root)."""
    (tmp_path / "text.txt").write_text("some text to learn")

    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    status, out, err = run_here(capsys, "train", tmp_path / "text.txt", "--run", tmp_path / "run")
    assert (status, out) == (1, "")
    assert "run can't be created: Permission denied; choose another with --run" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_an_example(capsys, command):
    status, out, _ = run_here(capsys, command, "--help")
    assert status == 0
    assert f"fastllm {command}" in out.split("example", 1)[1]


def test_help_lists_all_commands():
    status, out, err = run(ROOT, "--help")
    assert (status, err) == (0, "")
    assert all(f"\n    {command}" in out for command in cli.COMMANDS)


@pytest.mark.parametrize("words", [[], ["tarin"], ["train", "--no-such-option"]], ids=" ".join)
def test_wrong_commands(capsys, words):
    status, out, err = run_here(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("fastllm: error: ")
    assert len(err.splitlines()) == 1
