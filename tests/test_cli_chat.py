"""fastllm chat, through a pipe and on a terminal."""

import io
import subprocess
import sys

import pytest
from tiny_checkpoint import CONTEXT, learned, write_checkpoint

import fastllm
from fastllm.cli import main
from fastllm.cli.chat import chat_loop
from fastllm.generation import GenerationConfig

FAR, NEAR, MODEL, RED, BLUE = (
    "Yes, very far.",
    "No, it is near.",
    "I am a small model.",
    "A rose is red.",
    "The sea is blue.",
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class InterruptedTerminal(Terminal):
    """Ctrl-C when the piece `at` is written, once."""

    at = None

    def write(self, text):
        if text == self.at:
            self.at = None
            raise KeyboardInterrupt
        return super().write(text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("chat") / "checkpoint"))


def piped(text, **options):
    output = io.StringIO()
    assert chat_loop(*learned(), GenerationConfig(**options), io.StringIO(text), output) == 0
    return output.getvalue().splitlines()


def typed(monkeypatch, text, output=None):
    """What a terminal shows."""
    output = output or Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(text))
    monkeypatch.setattr("sys.stdout", output)
    assert chat_loop(*learned(), GenerationConfig(), sys.stdin, sys.stdout) == 0
    return output.getvalue()


def test_a_line_of_answer_for_each_line():
    assert piped("What is red?\n\n  And blue?  \n") == [RED, BLUE]


def test_the_turns_before_count_until_they_are_forgotten():
    follow_up = "What is blue?\nAnd red?\n"
    assert piped(f"{follow_up}Is it far?\n") == [BLUE, RED, NEAR]
    assert piped(f"{follow_up}/reset\nIs it far?") == [BLUE, RED, FAR]


@pytest.mark.parametrize("leave", ["exit", "quit", " exit "])
def test_a_word_leaves(leave):
    assert piped(f"Who are you?\n{leave}\nIs it far?\n") == [MODEL]


def test_options_reach_the_model():
    assert piped("Who are you?\n", max_tokens=3) == ["I am a"]
    assert piped("Who are you?\n", stop="small") == ["I am a "]


def test_a_question_that_is_too_long_is_a_line_and_the_chat_goes_on(capsys):
    assert piped("far " * CONTEXT + "\nIs it far?\n") == [FAR]
    error = capsys.readouterr().err
    assert error.startswith("fastllm: error: a question must fit into the model's context of 32 tokens; ")
    assert error.count("\n") == 1


def test_a_terminal_shows_who_speaks(monkeypatch):
    shown = typed(monkeypatch, "Is it far?\nexit\n").splitlines()
    assert shown[0].startswith("Ask something. /reset forgets")
    assert shown[1:] == ["you: model: Yes, very far.", "you: "]  # the terminal itself shows what is typed


def test_the_end_of_input_leaves_the_cursor_on_a_new_line(monkeypatch):
    assert typed(monkeypatch, "Is it far?\n").endswith("model: Yes, very far.\nyou: \n")


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(monkeypatch):
    output = InterruptedTerminal()
    output.at = " very"
    shown = typed(monkeypatch, "Is it far?\nWho are you?\n", output).splitlines()
    assert shown[1] == "you: model: Yes,"
    assert shown[2].startswith("you: model: ")
    assert len(shown[2]) > len("you: model: ")


def test_what_was_said_before_ctrl_c_is_remembered(monkeypatch):
    turns = []
    ask = fastllm.Chat.ask

    def watched(chat, question):
        turns.extend(chat.turns)
        return ask(chat, question)

    monkeypatch.setattr(fastllm.Chat, "ask", watched)
    output = InterruptedTerminal()
    output.at = " very"
    typed(monkeypatch, "Is it far?\nWho are you?\n", output)
    assert turns == [("Is it far?", "Yes, very")]


def test_ctrl_c_at_the_prompt_leaves(monkeypatch):
    class Stdin(Terminal):
        def readline(self, *size):
            raise KeyboardInterrupt

    output = Terminal()
    monkeypatch.setattr("sys.stdin", Stdin())
    monkeypatch.setattr("sys.stdout", output)
    assert chat_loop(*learned(), GenerationConfig(), sys.stdin, sys.stdout) == 0
    assert output.getvalue().endswith("you: \n")


def test_ctrl_c_ends_a_chat_through_a_pipe(checkpoint, monkeypatch, capsys):
    output = InterruptedTerminal()
    output.at = " very"
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it far?\nWho are you?\n"))
    monkeypatch.setattr("sys.stdout", output)
    assert main(["chat", checkpoint, "--backend", "numpy"]) == 130
    assert MODEL not in output.getvalue()


def test_a_process_of_its_own(checkpoint):
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", "chat", checkpoint, "--backend", "numpy"],
        input="Is it far?\nexit\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, FAR + "\n", "")


def test_wrong_options_are_wrong_use(checkpoint, capsys):
    assert main(["chat", checkpoint, "--temperature", "-1"]) == 2
    assert main(["chat", checkpoint, "--top-p", "0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [error.split(";")[0] for error in errors] == [
        "fastllm: error: temperature must be finite and not negative",
        "fastllm: error: top_p must be above 0 and at most 1",
    ]


def test_a_missing_model_is_a_failure(tmp_path, capsys):
    assert main(["chat", str(tmp_path / "nowhere")]) == 1
    assert "got nothing; check the name" in capsys.readouterr().err


def test_a_vocabulary_that_does_not_mark_who_speaks_cannot_chat():
    model, tokenizer = learned()

    class Unmarked:
        chat_template = None
        tokens = [token for token in tokenizer.tokens if token != "<user>"]  # noqa: RUF012

    with pytest.raises(ValueError, match="got one without <user>; train a model on dialogues"):
        chat_loop(model, Unmarked(), GenerationConfig(), io.StringIO("Is it far?\n"), io.StringIO())
