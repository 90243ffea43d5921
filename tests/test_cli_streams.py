"""The streams of the command line: in UTF-8, whatever the system takes, and closed ones; and how its process ends."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastllm import cli

ROOT = Path(__file__).parents[1]


def test_pipes_are_utf_8_whatever_the_system_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As files are. On Windows, a pipe would have the letters of one language."""
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    streams = {name: io.TextIOWrapper(io.BytesIO("好".encode()), encoding="cp1252") for name in
               ("stdin", "stdout", "stderr")}  # fmt: skip
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    cli._prepare_streams()
    assert streams["stdin"].read() == "好"
    for name in "stdout", "stderr":
        streams[name].seek(0, io.SEEK_END)
        streams[name].write("你")
        streams[name].flush()
        assert streams[name].buffer.getvalue().decode() == "好你"  # type: ignore[attr-defined]
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    cli._prepare_streams()
    assert sys.stdout.encoding == "cp1252"


def test_lines_of_a_pipe_end_as_those_of_files_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python translates the line ends of Windows in files, but on other systems not on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\r\nb\xff\r\n\nc"), "utf-8", newline="\n"))
    cli._prepare_streams()
    assert sys.stdin.read() == "a\nb\udcff\n\nc"


@pytest.mark.skipif(os.name == "nt", reason="no shell that closes streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_end_nothing(tmp_path: Path, closed: str) -> None:
    lines = [json.dumps({"phase": "a", "step": step, "loss": 1 / step}) + "\n" for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    words = [sys.executable, "-m", "fastllm", "plot", str(tmp_path), "--svg", str(tmp_path / "loss.svg")]
    result = subprocess.run(f"{shlex.join(words)} {closed}", shell=True, cwd=ROOT, check=False)
    assert result.returncode == 0
    assert "<svg" in (tmp_path / "loss.svg").read_text()


ENDING = """
import signal, sys
from fastllm.cli import main
status = main()
signal.raise_signal(signal.SIGINT)
sys.exit(status)
"""


def test_ctrl_c_while_the_process_ends_adds_no_traceback(tmp_path: Path) -> None:
    """As the second of two does, where the first has ended a command: Python takes a while to end."""
    words = [sys.executable, "-c", ENDING, "plot", str(tmp_path / "missing")]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("fastllm: error: ") and len(result.stderr.splitlines()) == 1
