"""Write a model in another project's files.

Where DST ends in .gguf, it is a GGUF file, which llama.cpp and all that is built on it open; else it is a folder that
transformers opens, with AutoModelForCausalLM and AutoTokenizer. SRC is whatever fastllm opens: a run or checkpoint
folder, a folder of Hugging Face's, a GGUF file, a llama2.c checkpoint, an adapter (which is merged), a name on the hub.

The tokenizer comes along, with its chat template and what the files say about generating. Where the other format
can't hold it, as GGUF can't hold one of words or characters, --no-tokenizer writes the model alone. In a folder, words
are decoded with a space between any two.

--type is the kind of number that matrices are written in: f32, f16, bf16, and of a GGUF file q8_0. Without it, they
stay as they are; a folder, which can't hold quantised ones, gets float16. `fastllm quantize` makes 4 bits.

Weights go from file to file in pieces, in little memory. DST appears when it is whole; with --force, what was there
before stays until then.

examples:
  fastllm convert runs/shakespeare shakespeare-hf
  fastllm convert runs/mine mine.gguf --type f16 --no-tokenizer
  fastllm convert SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2 --type bf16
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError

LARGE = 1 << 28  # bytes: what takes longer than a moment to write
LINES = 10  # of progress where there is no terminal
TYPES = ("f32", "f16", "bf16", "q8_0", "float32", "float16", "bfloat16")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the model")
    parser.add_argument("target", metavar="DST", help="a name that ends in .gguf, or a folder")
    parser.add_argument("--type", type=str.lower, choices=TYPES, metavar="TYPE",
                        help="f32, f16, bf16, and of a GGUF file q8_0 (as SRC has it)")  # fmt: skip
    add_writing(parser)


def add_writing(parser: argparse.ArgumentParser) -> None:
    """The options of commands that write a model."""
    parser.add_argument("--no-tokenizer", action="store_true",
                        help="write the model alone, which fastllm can then only convert")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace what is at DST")


def run(arguments: argparse.Namespace) -> int:
    from ..conversion import check_target, kind_of, load_source, size_of, write

    check_names(arguments.source, arguments.target)
    check_target(arguments.target, arguments.force)
    source = load_source(arguments.source, tokenizer=not arguments.no_tokenizer)
    kind = kind_of(source, Path(arguments.target), arguments.type)
    began = time.monotonic()
    with progress(arguments.target) as report:
        write(source, arguments.target, arguments.type, force=arguments.force, progress=report)
    kinds = " and ".join(sorted(source.kinds))
    size = size_of(arguments.target)
    alone = ", without a tokenizer" if source.tokenizer is None else ""
    print(
        f"{arguments.target}: {size_text(size)}, {kind or kinds} from {kinds}{alone}; {time.monotonic() - began:.1f} s"
    )
    return 0


def check_names(source: str, target: str) -> None:
    """Raise ConfigError where both are one file."""
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise ConfigError(f"SRC and DST must be two; got {target} for both; choose another name for DST")


def size_text(size: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to report bytes written with, so far and in all. Small models are written without a word."""
    from tqdm import tqdm

    bar: tqdm | None = None
    next_line = 0.0

    def report(done: int, total: int) -> None:
        nonlocal bar, next_line
        if total < LARGE:
            return
        if sys.stderr.isatty():
            if bar is None:
                bar = tqdm(total=total, desc=Path(what).name, unit="B", unit_scale=True, file=sys.stderr)
            bar.update(done - bar.n)
        elif done >= next_line or done == total:
            next_line = done + total / LINES
            print(f"{what}: {size_text(done)} of {size_text(total)}", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()
