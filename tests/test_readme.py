"""What the README says to type works."""

import json
import re
import shlex
import shutil
from pathlib import Path
from types import CodeType

import pytest
from small_dialogues import DIALOGUE

import fastllm
from fastllm.cli import COMMANDS, _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]


def between(marker: str) -> str:
    """The code block between <!-- marker:begin --> and <!-- marker:end -->."""
    block = re.search(f"<!-- {marker}:begin -->\n```\\w*\n(.*?)```\n<!-- {marker}:end -->", README, re.DOTALL)
    assert block, f"the README must hold a code block between the {marker} markers"
    return block[1]


def commands() -> list[str]:
    """Every line of a code block that calls fastllm."""
    blocks = [block for text in DOCUMENTS for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return sorted({part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("fastllm ")})


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(between("python"), "README.md", "exec"), {})
    assert "(128, 128)" in capsys.readouterr().out


def example(page: str) -> CodeType:
    """The Python code block of a page in docs/."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    return compile(block, page, "exec")


def test_the_example_of_training_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    records = [{"messages": DIALOGUE}, {"text": "The sun rises in the east."}]
    (tmp_path / "dialogues.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    names = {}
    exec(example("training.md"), names)
    *steps, perplexity = capsys.readouterr().out.splitlines()
    assert len(steps) == names["trainer"].step == 20
    assert float(perplexity) < names["model"].config.vocab_size


def test_the_example_of_published_models_runs(smollm2, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(smollm2, tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf")
    names = {"fastllm": fastllm}
    exec(example("models.md"), names)
    assert capsys.readouterr().out == "The capital of France is Paris."
    assert len(names["texts"]) == 2


def test_the_two_commands_are_there():
    assert between("start").strip() == "pip install -e . && fastllm demo"
    assert between("test").strip() == 'pip install -e ".[test]" && pytest'


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    words = shlex.split(command)[1:]
    assert words[0] in COMMANDS
    assert _parser(words[0]).parse_args(words).command == words[0]


def test_no_text_installs_another_package():
    assert all("pip install fastllm" not in text for text in DOCUMENTS)
