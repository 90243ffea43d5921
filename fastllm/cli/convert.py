"""Write a model in another project's format.

If DST ends with .gguf, it is written as a GGUF file, for llama.cpp and everything built on it; otherwise as a folder
that transformers opens, with AutoModelForCausalLM and AutoTokenizer. SRC is anything that fastllm opens: a run or
checkpoint folder, a Hugging Face folder, a GGUF file, a llama2.c checkpoint, an adapter (which is merged), or a name on
the hub.

The tokenizer is written too, with its chat template and the model's generation settings. If the format can't hold it
(GGUF has no word or character tokenizers), --no-tokenizer writes the model alone. AutoTokenizer decodes a word
tokenizer's words with a space between any two.

--type is the number type for matrices: f32, f16, bf16 or, in a GGUF file, q8_0. Without it, they stay as they are,
except that quantised ones become float16 in a folder, which can't hold them. For 4 bits, use `fastllm quantize`.

Weights are copied in pieces, so it takes little memory. DST appears only when it is complete; with --force, what was
there stays until then.

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

LARGE = 1 << 28  # bytes from which on progress is shown
LINES = 10  # of progress if stderr is not a terminal
TYPES = ("f32", "f16", "bf16", "q8_0", "float32", "float16", "bfloat16")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the model")
    parser.add_argument("target", metavar="DST", help="a file name that ends with .gguf, or a folder")
    parser.add_argument("--type", type=str.lower, choices=TYPES, metavar="TYPE",
                        help="f32, f16, bf16 or, in a GGUF file, q8_0 (default: as in SRC)")  # fmt: skip
    add_writing(parser)


def add_writing(parser: argparse.ArgumentParser) -> None:
    """The options of commands that write a model."""
    parser.add_argument("--no-tokenizer", action="store_true",
                        help="write the model alone; fastllm can then only convert it")  # fmt: skip
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
    """Raise ConfigError if both are the same file."""
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise ConfigError(f"SRC and DST must be different; got {target} for both; choose another name for DST")


def size_text(size: float) -> str:
    """A number of bytes in a readable unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows progress, given the bytes written so far and in all. Small models are written silently."""
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
