"""The command line, `fastllm COMMAND`. Each command has its own module, which is imported only when it is called.

A command's module has `configure(parser)` and `run(arguments) -> exit status`. Exit status 0 means success, 1 failure,
2 wrong usage, 130 interrupted, 143 terminated (SIGTERM), 129 terminal closed (SIGHUP). Errors are one line on stderr.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .. import __version__
from ..errors import ConfigError, FastllmError
from ..interrupts import ENDINGS

COMMANDS = {
    "demo": "train a small model on the shipped data, and chat with it",
    "train": "train a model on your own text or dialogues, or tune an existing one",
    "merge": "merge a low-rank adapter into its model",
    "generate": "continue a text",
    "chat": "talk with a model",
    "eval": "loss, perplexity and accuracy of a model on a file",
    "convert": "write a model as a folder for transformers, or as a GGUF file for llama.cpp",
    "quantize": "write a model as a GGUF file of 8 or 4 bits a weight, and measure what that costs",
    "plot": "draw a run's curves",
    "bench": "time kernels and training steps, also against PyTorch, and generation against llama.cpp",
    "warmup": "compile all kernels now, so that later commands start at once",
    "doctor": "show versions, CPU features, threads and caches, and what is wrong",
}

ONE_REQUEST = 1.0  # seconds: who closes a terminal sends SIGHUP twice, by the shell and by the system


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, without the usage."""

    chosen = ""  # the command that the error is about, for errors that its own parser doesn't see

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:  # from --option=--, which argparse would take as no value
            self.error(f"argument {'/'.join(action.option_strings)}: must not be --")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastllm: error: {message}; see `{self.prog}{self.chosen} --help`\n")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen command's module is imported, so `--help` is quick."""
    parser = _Parser(
        prog="fastllm",
        description="Train, tune and run language models on this CPU.",
        epilog="example: fastllm demo",
    )
    parser.add_argument("--version", action="version", version=f"fastllm {__version__}")
    parser.chosen = f" {chosen}" if chosen else ""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f".{name}", __name__)
            sub = commands.add_parser(
                name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            module.configure(sub)
        else:
            commands.add_parser(name, help=summary)
    return parser


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The arguments; unlike argparse, this lets a list of names or prompts continue after an option."""
    arguments, rest = parser.parse_known_args(words)
    goes_on = getattr(arguments, "goes_on", "")
    if rest and (not goes_on or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        getattr(arguments, goes_on).extend(rest)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    _prepare_streams()
    of_python = warnings.formatwarning
    warnings.formatwarning = lambda message, *where, **more: f"fastllm: note: {message}\n"
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if word in COMMANDS), None)
    try:
        arguments = _parse(_parser(chosen), words)
        module = importlib.import_module(f".{arguments.command}", __name__)
        with _cleaned_up_when_ended():
            return module.run(arguments) or 0
    except KeyboardInterrupt:
        print("\nfastllm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (head, less)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConfigError as error:
        return _fail(error, 2)
    except (FastllmError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        return _fail(error, 1)
    finally:
        warnings.formatwarning = of_python  # for a caller in Python
        if argv is None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends, and Ctrl-C would only add a traceback


@contextmanager
def _cleaned_up_when_ended() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP end by an exception, so that half-written files, maybe gigabytes, are removed.

    Another one ends the process at once, unless it comes within ONE_REQUEST of the first.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in ENDINGS if is_main and signal.getsignal(number) is signal.SIG_DFL]

    asked: list[float] = []

    def end(number: int, frame: object) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise SystemExit(128 + number)
        if asked[-1] - asked[0] > ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _prepare_streams() -> None:
    """Make sure that the three streams exist, and use UTF-8 unless a terminal or the user says otherwise."""
    if sys.stdin is None:  # closed, as when started by a daemon; so may the others be
        sys.stdin = io.StringIO()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  until the process ends
    # A terminal that lacks a character shows ?, instead of an error. An invalid byte of the input makes only its line
    # be refused, not the whole input.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            if stream is sys.stdin:  # accept all line endings, as for files
                stream.reconfigure(newline=None)
            stream.reconfigure(errors=errors)
            is_free = not stream.isatty() and not os.environ.get("PYTHONIOENCODING")
            if is_free and codecs.lookup(stream.encoding).name != "utf-8":
                stream.reconfigure(encoding="utf-8", errors=errors)


def _fail(error: BaseException, status: int) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"fastllm: error: {message}", file=sys.stderr)
    return status
