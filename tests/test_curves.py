"""Metrics read back, and the charts drawn from them."""

import json
import math
import os
import xml.etree.ElementTree as ET

import pytest

from fastllm.cli import main
from fastllm.errors import DataError
from fastllm.training.curves import POINTS, draw, make_chart, read_metrics, write_svg


def line(phase, step, loss):
    perplexity, accuracy = math.exp(min(loss, 700)), math.exp(-loss)
    return {"phase": phase, "step": step, "loss": loss, "perplexity": perplexity, "accuracy": accuracy}


METRICS = [
    *(line("facts", 10 * i, 6 / i) for i in range(1, 41)),
    *(line("dialogues", 5 * i, 4 / i) for i in range(1, 21)),
]
for entry in METRICS[42::3]:
    entry["validation_loss"] = entry["loss"] + 1


def write(path, metrics, end=""):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in metrics) + end, encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "metrics.jsonl", METRICS)
    return tmp_path


@pytest.mark.parametrize("end", ["", '{"phase": "facts", "st', '{"phase": "facts", "step": 10}', "\xe4"])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, end):
    assert read_metrics(write(tmp_path / "metrics.jsonl", METRICS, end)) == METRICS


@pytest.mark.parametrize("wrong", ["{", "[]", '{"step": 1}', '{"phase": "facts", "step": 0}', "[" * 100_000])
def test_any_other_wrong_line_is_named(tmp_path, wrong):
    path = write(tmp_path / "metrics.jsonl", METRICS[:2], f"{wrong}\n{{}}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 3: "):
        read_metrics(path)


@pytest.mark.parametrize("content", ["", '{"phase": "fa'])
def test_no_whole_line_is_an_error(tmp_path, content):
    with pytest.raises(DataError, match="at least one whole line; got none"):
        read_metrics(write(tmp_path / "metrics.jsonl", [], content))


def test_phases_follow_one_another():
    chart = make_chart(METRICS)
    assert chart.phases == [(0, "facts"), (400, "dialogues")]
    assert chart.updates == 500
    assert chart.training[0] == (10, 6.0)
    assert chart.training[39:41] == [(400, 0.15), (405, 4.0)]
    assert chart.validation[0] == (415, 4 / 3 + 1)
    assert chart.top == 6.0
    assert chart.ticks[0] == (0, "0")
    assert chart.ticks[-1] == (6, "6")


def test_perplexity_is_drawn_as_its_logarithm():
    chart = make_chart(METRICS, "perplexity")
    assert chart.training[0][1] == pytest.approx(6 / math.log(10))
    assert (pytest.approx(2), "100") in chart.ticks


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "?"])
def test_what_is_not_finite_is_left_out(missing):
    metrics = [*METRICS, line("dialogues", 105, 0.1) | {"accuracy": missing}]
    assert make_chart(metrics, "accuracy").training == make_chart(METRICS, "accuracy").training
    with pytest.raises(DataError, match="finite accuracy"):
        make_chart(metrics[-1:], "accuracy")


def test_long_curves_are_averaged_and_phases_stay_apart():
    metrics = [
        line(phase, step, (step % 7 + offset) / 10)
        for phase, offset in (("facts", 0), ("dialogues", 50))
        for step in range(1, 7 * 700 + 1)
    ]
    chart = make_chart(metrics)
    assert POINTS / 2 < len(chart.training) <= POINTS + 2
    last_fact = max(i for i, (update, _) in enumerate(chart.training) if update <= 4900)
    assert chart.training[last_fact][0] == 4900
    assert all(height < 0.7 for _, height in chart.training[: last_fact + 1])
    assert all(height >= 5 for _, height in chart.training[last_fact + 1 :])
    mean = sum(height for _, height in chart.training[: last_fact + 1]) / (last_fact + 1)
    assert mean == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("what", ["loss", "perplexity", "accuracy"])
def test_a_terminal_chart_shows_curves_and_phases_in_plain_characters(what):
    text = draw(METRICS, what, width=70, height=16)
    rows = text.split("\n")
    assert len(rows) == 16
    assert max(map(len, rows)) <= 70
    assert rows[0].strip() == what
    assert "facts" in rows[1]
    assert "dialogues" in rows[1]
    assert "training" in rows[-1]
    assert ("validation" in rows[-1]) == (what == "loss")
    assert "\x1b" not in text


def test_colors_are_for_terminals(monkeypatch):
    assert "\x1b[" in draw(METRICS, color=True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in draw(METRICS)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in draw(METRICS)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in draw(METRICS)


@pytest.mark.parametrize("losses", [[0.1], [0.0], [0.0, 0.0], [3.0, 3.0], [1e-9, 1e9], [690.0]])
@pytest.mark.parametrize("what", ["loss", "perplexity", "accuracy"])
def test_odd_curves_can_be_drawn(tmp_path, losses, what):
    metrics = [line("train", step, loss) for step, loss in enumerate(losses, 1)]
    assert "training" in draw(metrics, what)
    write_svg(metrics, tmp_path / "chart.svg", what)
    ET.parse(tmp_path / "chart.svg")


def test_an_svg_holds_the_curves_and_needs_nothing_from_elsewhere(tmp_path):
    path = tmp_path / "loss.svg"
    path.write_text("old")
    write_svg(METRICS, path)
    assert os.listdir(tmp_path) == ["loss.svg"]
    root = ET.parse(path).getroot()
    names = [element.tag.rpartition("}")[2] for element in root.iter() if isinstance(element.tag, str)]
    assert names[0] == "svg"
    assert not {"script", "image", "foreignObject", "use"}.intersection(names)
    assert not [key for element in root.iter() for key in element.attrib if key.endswith("href")]
    assert "@import" not in path.read_text()
    assert "url(" not in path.read_text()
    words = {element.text for element in root.iter() if element.text}
    assert {"training", "validation", "dialogues", "loss: facts, then dialogues"} <= words


def test_an_svg_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "loss.svg"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_svg(METRICS, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["loss.svg"]


def test_plot_draws_a_run_folder_or_its_metrics(run, capsys):
    assert main(["plot", str(run)]) == 0
    drawn = capsys.readouterr().out
    assert drawn.rstrip("\n") == draw(METRICS)
    assert main(["plot", str(run / "metrics.jsonl"), "--what", "accuracy", "--svg", str(run / "a.svg")]) == 0
    assert capsys.readouterr().out.split()[0] == "accuracy"
    assert "accuracy: facts" in (run / "a.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [(["nowhere"], "got no such file; check the name", 1), ([".", "--svg", "nowhere/loss.svg"], "nowhere", 2)],
)
def test_plot_fails_in_a_line(run, capsys, monkeypatch, arguments, message, status):
    monkeypatch.chdir(run)
    assert main(["plot", *arguments]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["run", "--what", "beauty"]])
def test_plot_knows_wrong_use(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(["plot", *arguments])
    assert exit.value.code == 2
    assert "fastllm: error: " in capsys.readouterr().err


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 2), (80, 5), (3, 20)])
def test_next_to_no_room(width, height):
    """Of so little, with two phases, plotext would end the process."""
    metrics = [line("a", 1, 3.0), line("a", 2, 2.0), line("b", 1, 2.0), line("b", 2, 1.0)]
    assert draw(metrics, width=width, height=height)


def test_numbers_that_are_too_large_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [line("a", step, 2.0) for step in range(1, 5)]
    lines[1]["loss"], lines[2]["loss"] = 10**400, 1.7e308
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert len(make_chart(read_metrics(path)).training) == 2
    path.write_text(json.dumps({**line("a", 1, 2.0), "step": 10**400}) + "\n")
    with pytest.raises(DataError, match="a step from 1 on"):
        read_metrics(path)


def test_names_of_phases_that_xml_cannot_hold(tmp_path):
    metrics = [line(name, step, 2.0) for name in ("a\x02b", "c\ud800d") for step in (1, 2)]
    write_svg(metrics, tmp_path / "loss.svg")
    assert "a?b" in "".join(ET.parse(tmp_path / "loss.svg").getroot().itertext())
