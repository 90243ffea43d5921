"""fastllm chat, through a pipe and on a terminal."""

import copy
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import CONTEXT, learned, write_checkpoint

import fastllm
from fastllm.cli import chat as chat_module
from fastllm.cli import main
from fastllm.cli.chat import COMMANDS, _append, chat_loop
from fastllm.generation import GenerationConfig
from fastllm.records import read_records

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


def piped(text, status=0, **options):
    output = io.StringIO()
    assert chat_loop(*learned(), GenerationConfig(**options), io.StringIO(text), output) == status
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


@pytest.mark.parametrize("leave", ["exit", "quit", " exit ", "/exit", "/quit"])
def test_a_word_leaves(leave):
    assert piped(f"Who are you?\n{leave}\nIs it far?\n") == [MODEL]


def test_options_reach_the_model():
    assert piped("Who are you?\n", max_tokens=3) == ["I am a"]
    assert piped("Who are you?\n", stop="small") == ["I am a "]


def test_a_question_that_is_too_long_is_a_line_and_the_chat_goes_on(capsys):
    assert piped("Who are you?\n" + "far " * CONTEXT + "\n/reset\nIs it far?\n", status=1) == [MODEL, "", FAR]
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


def test_ctrl_c_ends_a_chat_through_a_pipe(checkpoint, monkeypatch):
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
        chat_template, chat_templates = None, {}
        tokens = [token for token in tokenizer.tokens if token != "<user>"]  # noqa: RUF012

    with pytest.raises(ValueError, match="got one without <user>; train a model on dialogues"):
        chat_loop(model, Unmarked(), GenerationConfig(), io.StringIO("Is it far?\n"), io.StringIO())


# Commands and texts of several lines


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("a \\\n b\\\nc\nd\n", ["a \n b\nc", "d"]),
        ("a\\", ["a"]),
        ("\\\nexit\nb\n", ["exit", "b"]),  # a text of several lines is no word that leaves
        ('"""a\n\n  b"""\nc\n', ["a\n\n  b", "c"]),
        ('"""\n  a\n b\n"""\n', ["  a\n b"]),
        ('"""/reset"""\n', ["/reset"]),
        ('"""a\nb', ["a\nb"]),
        ('"""\n"""\n', []),
        ('say """a"""\n', ['say """a"""']),
    ],
)
def test_texts_of_several_lines(monkeypatch, text, questions):
    asked = []
    monkeypatch.setattr(fastllm.Chat, "ask", lambda chat, question: asked.append(question) or iter(()))
    piped(text)
    assert asked == questions


def test_ctrl_c_gives_up_a_text_of_several_lines(monkeypatch):
    class Stdin(Terminal):
        def readline(self, *size):
            line = super().readline(*size)
            if line == "STOP\n":
                raise KeyboardInterrupt
            return line

    output = Terminal()
    monkeypatch.setattr("sys.stdin", Stdin('"""Who\nSTOP\nIs it far?\nexit\n'))
    monkeypatch.setattr("sys.stdout", output)
    assert chat_loop(*learned(), GenerationConfig(), sys.stdin, sys.stdout) == 0
    assert output.getvalue().splitlines()[1:] == ["you: ...: ", "you: model: Yes, very far.", "you: "]


def test_an_unknown_command_is_a_line_and_no_question(capsys):
    assert piped("/rest\n/usr/bin is what?\nIs it far?\n", status=1) == [FAR]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("fastllm: error: a command must be one of /reset, /system, /temperature, ")
    assert "got /rest; put a question that begins with / in" in errors[0]


def test_help_names_all_commands(capsys):
    assert piped("/help\n") == []
    said = capsys.readouterr().err
    assert all(command in said for command in COMMANDS)


def test_help_on_a_terminal(monkeypatch):
    assert "/save FILE" in typed(monkeypatch, "/help\nexit\n")


def test_options_change(capsys):
    question = "/reset\nWho are you?\n"
    assert piped(f"{question}/max_tokens 3\n{question}/max_tokens none\n{question}") == [MODEL, "I am a", MODEL]
    assert piped("/temperature 0.5\n/temperature\n/top_k\n/top_p\t0.25\n/top_p\n") == []
    assert capsys.readouterr().err.splitlines() == ["temperature is 0.5", "top_k is none", "top_p is 0.25"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/temperature hot", "temperature must be a number; got 'hot'"),
        ("/temperature -1", "temperature must be finite and not negative"),
        ("/top_k 1.5", "top_k must be a whole number or none"),
        ("/top_p none", "top_p must be a number"),
        ("/max_tokens 0", "max_tokens must be 1 or more"),
        ("/system be kind", "a system message needs a tokenizer with a chat template"),
        ("/save", "/save needs the name of a file"),
        ("/save x.jsonl", "a conversation to save must have an answer"),
        ("/seed some", "seed must be a whole number or none"),
    ],
)
def test_wrong_commands_are_a_line_and_the_chat_goes_on(command, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert piped(f"{command}\nIs it far?\n", status=1) == [FAR]
    error = capsys.readouterr().err
    assert error.startswith(f"fastllm: error: {said}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_save_adds_what_train_reads(tmp_path, capsys):
    path = tmp_path / "talk of é.jsonl"
    path.write_text('{"text": "old"}', encoding="utf-8")  # without a line end
    piped(f"What is red?\nAnd blue?\n/save {path}\n/reset\nIs it far?\n/save {path}\n")
    assert capsys.readouterr().err.splitlines() == [f"added 2 turns to {path}", f"added 1 turn to {path}"]
    old, first, second = read_records(path)
    assert old == {"text": "old"}
    assert [message["content"] for message in first["messages"]] == ["What is red?", RED, "And blue?", BLUE]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant"]


def test_save_tells_of_answers_that_were_cut(tmp_path, capsys):
    path = tmp_path / "talk.jsonl"
    piped(f"What is red?\nIs it far?\n/max_tokens none\nAnd blue?\n/save {path}\n", max_tokens=1)
    assert capsys.readouterr().err == f"added 3 turns to {path}; 2 answers were cut off: complete them there\n"


def test_save_for_a_user_who_does_not_exist(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert piped("Is it far?\n/save ~nobody-of-this-name/talk.jsonl\nIs it far?\n", status=1) == [FAR, FAR]
    assert "No such file or directory: '~nobody-of-this-name/talk.jsonl'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_stats_are_forgotten_with_the_answer(capsys):
    piped("What is red?\n/stats\n/reset\n/stats\n")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("prompt ")
    assert second == "no answer yet"


def test_save_into_a_folder(tmp_path, capsys):
    """It is not read through."""
    (tmp_path / "a.jsonl").write_text("nonsense")
    assert piped(f"Is it far?\n/save {tmp_path}\n", status=1) == [FAR]
    assert capsys.readouterr().err == (
        f"fastllm: error: /save needs the name of a file; got a folder; try /save {tmp_path / 'dialogues.jsonl'}\n"
    )


def test_save_with_the_system_message_and_without_empty_answers(tmp_path, capsys, monkeypatch):
    pytest.importorskip("jinja2")
    model, tokenizer = learned()
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}<assistant>"
    answers = iter([FAR, "", RED])

    def ask(chat, question):
        chat.turns.append((question, next(answers)))
        return iter(())

    monkeypatch.setattr(fastllm.Chat, "ask", ask)
    path = tmp_path / "x.jsonl"
    source = io.StringIO(f"Is it far?\nWho?\nWhat is red?\n/save {path}\n")
    chat_loop(model, tokenizer, GenerationConfig(), source, io.StringIO(), system="Be kind.")
    assert capsys.readouterr().err == f"added the system message and 2 turns to {path}\n"
    [record] = read_records(path)
    assert [(message["role"], message["content"]) for message in record["messages"]] == [
        ("system", "Be kind."), ("user", "Is it far?"), ("assistant", FAR), ("user", "What is red?"), ("assistant", RED)
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8"])
def test_a_wrong_byte_spoils_its_line_alone(checkpoint, encoding):
    found = subprocess.run(
        [sys.executable, "-m", "fastllm", "chat", checkpoint, "--backend", "numpy"],
        input=b"\xef\xbb\xbfIs it far?\nab\xffcd\nWhat is red?\n",
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert found.returncode == 1
    assert found.stdout.decode().splitlines() == [FAR, "", RED]
    [error] = found.stderr.decode().splitlines()
    assert error.startswith("fastllm: error: text must be UTF-8; got byte 0xff at position 2; convert it")


def test_save_leaves_a_file_of_something_else_alone(tmp_path, capsys):
    path, array = tmp_path / "notes.jsonl", tmp_path / "data.json"
    path.write_text("my notes\n", encoding="utf-8")
    array.write_text('[{"text": "x"}]', encoding="utf-8")
    saves = f"/save {path}\n/save {array}\n/save {tmp_path}/new\n/save {tmp_path}/nowhere/x.jsonl\n"
    piped(f"Is it far?\n{saves}", status=1)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "line 1" in errors[0]
    assert "/save needs a name that ends with .jsonl; got data.json; try /save data.jsonl" in errors[1]
    assert "got new; try /save new.jsonl" in errors[2]
    assert path.read_text(encoding="utf-8") == "my notes\n"
    assert array.read_text(encoding="utf-8") == '[{"text": "x"}]'
    assert sorted(tmp_path.iterdir()) == [array, path]


@pytest.mark.parametrize("before", [b"", b'{"text": "x"}\n'])
def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch, before):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > len(before):
                raise OSError(28, "No space left on device")
            return super().write(data[:10])

    path = tmp_path / "x.jsonl"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr("fastllm.cli.chat.open", lambda path, mode, buffering: Full(path, "ab"), raising=False)
    with pytest.raises(OSError, match="No space left"):
        _append(path, b'{"text": "a longer line"}\n')
    assert (path.read_bytes() if path.exists() else b"") == before
    assert path.exists() == bool(before)


def test_ctrl_c_before_an_answer_begins_or_in_a_command_leaves_the_chat_open(monkeypatch):
    ask, save = fastllm.Chat.ask, chat_module._save
    calls = []

    def interrupted(chat, *rest):
        calls.append(1)
        if len(calls) in (1, 3):
            raise KeyboardInterrupt
        return (ask if len(calls) < 3 else save)(chat, *rest)

    monkeypatch.setattr(fastllm.Chat, "ask", interrupted)
    monkeypatch.setattr(chat_module, "_save", interrupted)
    shown = typed(monkeypatch, "What is red?\nIs it far?\n/save x.jsonl\n/stats\nexit\n")
    assert FAR in shown and RED not in shown and "answer 5 tokens" in shown
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        piped("What is red?\n")


def test_control_characters_of_an_answer_are_shown_not_obeyed(monkeypatch):
    monkeypatch.setattr(fastllm.Chat, "ask", lambda chat, question: iter(["a\x1b[2J\x9b", "é\tb\r\nc"]))
    assert "a␛[2J\ufffdé\tb\nc" in typed(monkeypatch, "What?\nexit\n")
    assert piped("What?\n") == "a\x1b[2J\x9bé\tb\r\nc\n".splitlines()  # a file has what the model said


def test_stats(capsys):
    assert piped("/stats\nIs it far?\n/stats\n") == [FAR]
    before, after = capsys.readouterr().err.splitlines()
    assert before == "no answer yet"
    assert re.fullmatch(
        r"prompt 6 tokens; answer 5 tokens, the first after \d+\.\d\d s, \d+\.\d tokens/s from there", after
    )


def test_stats_of_every_answer(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it far?\nAnd red?\n"))
    assert main(["chat", checkpoint, "--backend", "numpy", "--stats"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(FAR + "\n")
    assert captured.err.startswith("prompt 6 tokens; answer 5 tokens, the first after ")
    assert captured.err.count("tokens/s") == 2


def test_a_system_message_needs_a_template(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it far?\n"))
    assert main(["chat", checkpoint, "--backend", "numpy", "--system", "Be kind."]) == 1
    assert capsys.readouterr().err.startswith("fastllm: error: a system message needs a tokenizer with a chat template")


def test_system_messages(monkeypatch):
    pytest.importorskip("jinja2")
    model, tokenizer = learned()
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}<assistant>"
    prompts = []
    monkeypatch.setattr(fastllm.Chat, "ask", lambda chat, question: prompts.append(chat.prompt(question)) or iter(()))
    source = io.StringIO("Is it far?\n/system red\nIs it far?\n/system\nIs it far?\n")
    chat_loop(model, tokenizer, GenerationConfig(), source, io.StringIO(), system="blue")
    assert [tokenizer.decode(prompt, skip_special=False) for prompt in prompts] == [
        "blue Is it far? <assistant>", "red Is it far? <assistant>", "Is it far? <assistant>"
    ]  # fmt: skip


@pytest.mark.parametrize("pieces", [["Ü", "ber", " gro", "ß"], ["日", "本"], ["a\n", "b"]])
def test_an_answer_is_written_as_it_comes(pieces, monkeypatch):
    written = []

    class Output(io.StringIO):
        def write(self, text):
            written.append(text)
            return super().write(text)

    monkeypatch.setattr(fastllm.Chat, "ask", lambda chat, question: iter(pieces))
    chat_loop(*learned(), GenerationConfig(), io.StringIO("Is it far?\n"), Output())
    assert [text for text in written if text] == [*pieces, "\n"]
