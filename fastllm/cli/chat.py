'''Talk with a model that was tuned on dialogues; it sees as many earlier turns as fit into its context.

Each line is a question. A line that ends with a backslash continues on the next; text between """ and """ may have any
number of lines. exit, quit, /exit, /quit or the end of input leaves. Ctrl-C stops an answer; at the prompt it leaves. A
line that begins with / is a command; /help lists them. Questions may come through a pipe: each gets its answer and a
line break on stdout, and everything else goes to stderr; the exit status is 1 if one could not be answered.

examples:
  fastllm chat runs/demo-en
  fastllm chat runs/demo-en --temperature 0.7 --seed 1
  fastllm chat SmolLM2-135M-Instruct.gguf --system "Answer in one sentence."
  echo "How do mountains form?" | fastllm chat runs/demo-en
'''

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import DataError
from ..generation import Chat, GenerationConfig
from .model_options import (
    add_generation,
    add_model,
    decoded,
    generation_config,
    harmless,
    load_to_generate,
    note_what_does_nothing,
    or_none,
    without_mark,
)

if TYPE_CHECKING:
    from ..model import Model
    from ..tokenizers import Tokenizer

YOU, MORE, MODEL = "you: ", "...: ", "model: "
LEAVE = ("exit", "quit", "/exit", "/quit")
QUOTES = '"""'
OPTIONS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": or_none,
    "min_p": float,
    "repetition_penalty": float,
    "max_tokens": or_none,
    "seed": or_none,
}
HELP = f"""\
/reset               forget the conversation
/system TEXT         set another system message; without TEXT, none
/temperature NUMBER  set it for the answers to come; without NUMBER, show it. Likewise
                     /{", /".join(name for name in OPTIONS if name != "temperature")}
                     (top_k, max_tokens and seed may be none: no limit, no fixed seed)
/save FILE           add the conversation to FILE, as a line that `fastllm train` reads
/stats               the last answer's tokens and speed
/help                this list
A line that ends with \\ continues on the next; text in {QUOTES} may have many lines. exit leaves."""
COMMANDS = ("/reset", "/system", *(f"/{name}" for name in OPTIONS), "/save", "/stats", "/help")

Read = Callable[[str], str | None]


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--system", type=decoded, metavar="TEXT", help="a system message, for example how to answer; "
                        "for models with a chat template")  # fmt: skip
    parser.add_argument("--stats", action="store_true", help="after each answer, show its tokens and speed on stderr")
    add_generation(parser)


def run(arguments: argparse.Namespace) -> int:
    config = generation_config(arguments)
    model, tokenizer = load_to_generate(arguments)
    note_what_does_nothing(config, model)
    return chat_loop(
        model, tokenizer, config, sys.stdin, sys.stdout, system=arguments.system, shows_stats=arguments.stats
    )


def chat_loop(
    model: Model,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    source: TextIO,
    output: TextIO,
    *,
    system: str | None = None,
    shows_stats: bool = False,
) -> int:
    """Answer questions from `source` until it ends or one says to leave; returns the exit status.

    On a terminal it shows prompts, and Ctrl-C only stops an answer. A question that can't be answered is reported on
    stderr, and the next one is read; through a pipe its answer is an empty line, and the exit status is then 1, as it
    is after a command that failed.
    Raises DataError if the tokenizer can't mark who speaks, FastllmError if logits aren't finite.
    """
    is_terminal = source is sys.stdin and source.isatty() and output.isatty()
    session = _Session(Chat(model, tokenizer, config, system), output, is_terminal, shows_stats)
    read = _typed() if is_terminal else _piped(source)
    for text, is_line in _entries(read, is_terminal):
        if is_line and text in LEAVE:
            break
        if is_line and text.startswith("/"):
            session.command(text)
        elif text.strip():
            session.answer(text)
    return int(session.has_failed and not is_terminal)


def _piped(source: TextIO) -> Read:
    first = True

    def read(_: str) -> str | None:
        nonlocal first
        line, was_first, first = next(iter(source), None), first, False
        return without_mark(line) if was_first and line is not None else line

    return read


def _typed() -> Read:
    """A function that reads lines typed at the prompt; None for Ctrl-D, and for Ctrl-C where a question would begin."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  lets input() edit a line and recall earlier ones
    print("Ask something. /reset forgets, Ctrl-C stops an answer, exit leaves, /help says more.")

    def read(prompt: str) -> str | None:
        try:
            return input(prompt)
        except EOFError:
            print()  # the shell's prompt gets a line of its own
            return None
        except KeyboardInterrupt:
            print()
            if prompt == MORE:
                raise
            return None

    return read


def _entries(read: Read, is_terminal: bool) -> Iterator[tuple[str, bool]]:
    """Questions and commands, and for each whether it is a single line as typed (or a text of several lines)."""
    while (line := read(YOU)) is not None:
        text = line.strip()
        try:
            if text.startswith(QUOTES):
                yield _quoted(text.removeprefix(QUOTES), read), False
            elif text.endswith("\\"):
                yield _continued(text, read), False
            else:
                yield text, True
        except KeyboardInterrupt:  # discards the text that was begun
            if not is_terminal:
                raise


def _quoted(first: str, read: Read) -> str:
    """The text between the quotes, of which `first` is the first line; the end of input closes them."""
    lines: list[str] = []
    line: str | None = first
    while line is not None:
        if line.rstrip().endswith(QUOTES):
            lines.append(line.rstrip().removesuffix(QUOTES))
            break
        lines.append(line.removesuffix("\n"))
        line = read(MORE)
    return "\n".join(lines).strip("\n")


def _continued(first: str, read: Read) -> str:
    """Lines that end with a backslash, joined with the line after them."""
    lines: list[str] = []
    line: str | None = first
    while line is not None:
        line = line.rstrip()
        lines.append(line.removesuffix("\\"))
        line = read(MORE) if line.endswith("\\") else None
    return "\n".join(lines).strip()


class _Session:
    """A chat and where it is shown."""

    def __init__(self, chat: Chat, output: TextIO, is_terminal: bool, shows_stats: bool) -> None:
        self._chat = chat
        self._output = output
        self._is_terminal = is_terminal
        self._shows_stats = shows_stats
        self.has_failed = False
        self._seconds: tuple[float, float] | None = None  # to the first piece of an answer, and from there to its end

    def answer(self, question: str) -> None:
        began = time.perf_counter()
        try:
            answer = self._chat.ask(question)
        except KeyboardInterrupt:  # while a long question is being encoded
            self._stopped()
            return
        except ValueError as error:
            self._fail(error)
            if not self._is_terminal:
                print(file=self._output, flush=True)
            return
        if self._is_terminal:
            print(MODEL, end="", file=self._output)
        first = None
        try:
            for piece in answer:
                first = first or time.perf_counter()
                # As it comes: a piece never ends inside a character, and its spaces are the text's own.
                print(harmless(piece) if self._is_terminal else piece, end="", file=self._output, flush=True)
        except KeyboardInterrupt:  # what was said so far stays in the chat's turns
            if not self._is_terminal:
                raise
        print(file=self._output, flush=True)
        ended = time.perf_counter()
        self._seconds = ((first or ended) - began, ended - (first or ended))
        if self._shows_stats:
            print(self._stats(), file=sys.stderr, flush=True)

    def command(self, line: str) -> None:
        """Execute a line that begins with /. Errors are reported on stderr."""
        name, argument = (*line.split(maxsplit=1), "")[:2]
        try:
            if argument and name in ("/reset", "/stats", "/help"):
                raise DataError(f"{name} takes no argument; got {argument[:60]!r}; leave that out")
            match name:
                case "/reset":
                    self._chat.reset()
                    self._seconds = None
                case "/system":
                    self._chat.system = argument or None
                case "/save":
                    self._tell(_save(self._chat, argument))
                case "/stats":
                    self._tell(self._stats())
                case "/help":
                    self._tell(HELP)
                case _ if name.removeprefix("/") in OPTIONS:
                    self._option(name.removeprefix("/"), argument)
                case _:
                    raise DataError(
                        f"a command must be one of {', '.join(COMMANDS)}; got {name[:60]}; "
                        f"put a question that begins with / in {QUOTES}"
                    )
        except KeyboardInterrupt:
            self._stopped()
        except (ValueError, OSError) as error:
            self._fail(error)

    def _stopped(self) -> None:
        """Handle Ctrl-C: on a terminal it leaves the chat only at the prompt."""
        if not self._is_terminal:
            raise KeyboardInterrupt
        print(file=self._output, flush=True)

    def _option(self, name: str, argument: str) -> None:
        if argument:
            kind = OPTIONS[name]
            try:
                value = kind(argument)
            except ValueError:
                what = "a whole number or none" if kind is or_none else "a number"
                raise DataError(f"{name} must be {what}; got {argument!r:.60}; try /{name} 1") from None
            self._chat.change(**{name: value})
        else:
            value = getattr(self._chat.config, name)
            self._tell(f"{name} is {'none' if value is None else value}")

    def _stats(self) -> str:
        if self._seconds is None:
            return "no answer yet"
        (prompt, tokens), (first, rest) = self._chat.counts, self._seconds
        speed = f", {(tokens - 1) / rest:.1f} tokens/s from there" if tokens > 1 and rest > 0 else ""
        return f"prompt {prompt} tokens; answer {tokens} tokens, the first after {first:.2f} s{speed}"

    def _tell(self, text: str) -> None:
        """Show something other than an answer: on stderr if the answers go to a pipe."""
        print(text, file=self._output if self._is_terminal else sys.stderr, flush=True)

    def _fail(self, error: Exception) -> None:
        self.has_failed = True
        print(f"fastllm: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def _save(chat: Chat, name: str) -> str:
    """Add the conversation to a file of dialogues; returns a message about what was done."""
    from ..records import LINES_SUFFIXES, read_records

    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":  # quoted, as for a shell
        name = name[1:-1]
    if not name:
        raise DataError("/save needs the name of a file; got none; try /save dialogues.jsonl")
    turns = [turn for turn in chat.turns if turn[1]]  # empty answers would teach the model to say nothing
    if not turns:
        raise DataError("a conversation to save must have an answer; got none yet; ask something")
    path = Path(os.path.expanduser(name))  # Path.expanduser raises RuntimeError for an unknown ~user
    if path.is_dir():
        raise DataError(f"/save needs the name of a file; got a folder; try /save {path / 'dialogues.jsonl'}")
    if path.suffix.lower() not in LINES_SUFFIXES:
        raise DataError(f"/save needs a name that ends with .jsonl; got {path.name}; try /save {path.stem}.jsonl")
    before = b""
    if path.exists() and path.stat().st_size:
        read_records(path)  # raises for a file with other contents, which is then left alone
        with open(path, "rb") as file:
            file.seek(-1, 2)
            before = b"" if file.read() == b"\n" else b"\n"
    messages = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    messages += [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    line = json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"
    _append(path, before + line)
    system = "" if chat.system is None else "the system message and "
    cut = sum(map(chat.is_cut, turns))
    answers, them = ("answers were", "them") if cut > 1 else ("answer was", "it")
    warning = f"; {cut} {answers} cut off: complete {them} there" if cut else ""
    return f"added {system}{len(turns)} turn{'s' if len(turns) > 1 else ''} to {path}{warning}"


def _append(path: Path, content: bytes) -> None:
    """Append all of it or nothing: half a line would spoil the file."""
    size = path.stat().st_size if path.is_file() else None
    with open(path, "ab", buffering=0) as file:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            if size is not None:
                os.truncate(path, size)
            elif path.is_file():
                path.unlink()
            raise
