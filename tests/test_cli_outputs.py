"""Files that commands write charts and figures to: what they take the place of, and what they don't."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastllm import cli


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    line = {"phase": "a", "epoch": 1, "step": 1, "loss": 2.0, "accuracy": 0.5}
    lines = "".join(json.dumps({**line, "step": step}) + "\n" for step in (1, 2, 3))
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    return tmp_path / "run"


def test_a_chart_takes_the_place_of_a_chart_only(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run_folder.parent / "text.txt"
    text.write_text("my text")
    before = (run_folder / "metrics.jsonl").read_text()
    for path, message in (
        (run_folder / "metrics.jsonl", "must name a file of its own"),
        (text, "must not replace another kind of file"),
        (run_folder, "must name a file in a folder that exists"),
        (run_folder / "missing" / "a.svg", "must name a file in a folder that exists"),
    ):
        assert cli.main(["plot", str(run_folder), "--svg", str(path)]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    assert (text.read_text(), (run_folder / "metrics.jsonl").read_text()) == ("my text", before)
    for _ in range(2):
        assert cli.main(["plot", str(run_folder), "--svg", str(run_folder.parent / "a.svg")]) == 0
    if os.path.exists("/dev/null"):
        assert cli.main(["plot", str(run_folder), "--svg", "/dev/null"]) == 0
        assert Path("/dev/null").is_char_device()


def test_figures_take_the_place_of_figures_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dialogues, figures = tmp_path / "dialogues.jsonl", tmp_path / "figures.json"
    dialogues.write_text('{"text": "a b"}\n')
    assert cli.main(["bench", "add", "--quick", "--json", str(dialogues)]) == 2
    assert "--json must not replace another kind of file" in capsys.readouterr().err
    assert dialogues.read_text() == '{"text": "a b"}\n'
    for _ in range(2):
        assert cli.main(["bench", "add", "--quick", "--json", str(figures)]) == 0
    assert len(json.loads(figures.read_text())) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_figures_go_into_a_pipe_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    assert cli.main(["bench", "add", "scale", "--quick", "--json", str(pipe)]) == 0
    reader.join()
    assert len(json.loads(received[0])) == 4
