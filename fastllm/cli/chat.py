"""Talk with a model that was tuned on dialogues; it sees the turns before as far as its context holds them.

A line is a question. /reset forgets what was said; exit, quit or the end of input leaves. Ctrl-C stops an
answer, and at the prompt it leaves. Questions may come through a pipe: each line gets a line of answer.

examples:
  fastllm chat runs/demo-en
  fastllm chat runs/demo-en --temperature 0.7 --seed 1
  echo "How do mountains form?" | fastllm chat runs/demo-en
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from ..generation import Chat, GenerationConfig
from .model_options import add_generation, add_model, generation_config

if TYPE_CHECKING:
    from ..model import Model
    from ..tokenizers import Tokenizer

YOU, MODEL = "you: ", "model: "
LEAVE = ("exit", "quit")
RESET = "/reset"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_generation(parser)


def run(arguments: argparse.Namespace) -> int:
    config = generation_config(arguments)
    from ..checkpoint import load
    from ..training.progress import compile_kernels

    model, tokenizer = load(arguments.model, arguments.backend)
    compile_kernels(model)
    return chat_loop(model, tokenizer, config, sys.stdin, sys.stdout)


def chat_loop(
    model: Model, tokenizer: Tokenizer, config: GenerationConfig, source: TextIO, output: TextIO
) -> int:
    """Answer the lines of source until they end or say so; the exit status, 0.

    Between standard input and a terminal it shows prompts, and Ctrl-C stops an answer only. A question that
    can't be answered is a line on stderr, and the next one is read.
    Raises DataError if the vocabulary doesn't mark who speaks, FastllmError if logits aren't finite.
    """
    is_terminal = source is sys.stdin and source.isatty() and output.isatty()
    chat = Chat(model, tokenizer, config)
    for line in _typed() if is_terminal else source:
        question = line.strip()
        if question in LEAVE:
            break
        if question == RESET:
            chat.reset()
        elif question:
            _answer(chat, question, output, is_terminal)
    return 0


def _typed() -> Iterator[str]:
    """Lines typed at the prompt, until Ctrl-D or Ctrl-C."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  lets input() edit a line and recall earlier ones
    print(f"Ask something. {RESET} forgets, Ctrl-C stops an answer, exit leaves.")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input(YOU)
    print()  # the shell's prompt gets a line of its own


def _answer(chat: Chat, question: str, output: TextIO, is_terminal: bool) -> None:
    try:
        answer = chat.ask(question)
    except ValueError as error:
        print(f"fastllm: error: {error}", file=sys.stderr, flush=True)
        return
    if is_terminal:
        print(MODEL, end="", file=output)
    try:
        for piece in answer:
            print(piece, end="", file=output, flush=True)
    except KeyboardInterrupt:  # what was said so far stays in the chat's turns
        if not is_terminal:
            raise
    print(file=output, flush=True)
