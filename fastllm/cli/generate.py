"""Continue a text: what follows the prompt is written as it is generated, without the prompt.

An empty prompt gives a text from its beginning. The prompt is read as it stands, without marks of who speaks;
`fastllm chat` adds them.

examples:
  fastllm generate runs/shakespeare "ROMEO:" --max-tokens 200 --temperature 0.8
  fastllm generate runs/demo-en "The moon" --beams 4
  fastllm generate runs/demo-en - < prompt.txt
"""

from __future__ import annotations

import argparse
import sys

from .model_options import add_generation, add_model, generation_config


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from standard input")
    add_generation(parser)
    parser.add_argument("--beams", type=int, metavar="N", default=argparse.SUPPRESS,
                        help="beam search with N hypotheses, at temperature 0 (default: 1)")  # fmt: skip
    parser.add_argument("--length-penalty", type=float, metavar="X", default=argparse.SUPPRESS,
                        help="a hypothesis scores log-probability / length ** X (default: 1)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    config = generation_config(arguments)
    from ..checkpoint import load
    from ..generation import stream
    from ..training.progress import compile_kernels

    model, tokenizer = load(arguments.model, arguments.backend)
    compile_kernels(model)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    for piece in stream(model, tokenizer, prompt, config):
        print(piece, end="", flush=True)
    print()
    return 0
