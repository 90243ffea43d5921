"""Write a model as a GGUF file of 8 or 4 bits per weight, and report what it costs.

    q8_0   8.5 bits per weight: 32 weights share a scale
    q4_0   4.5 bits: 32 weights share a scale
    q4_1   5 bits: 32 weights share a scale and a minimum

Norms and biases stay float32. With the 4-bit types, the head (or the token embedding, if tied to it) gets 8 bits, as
every logit depends on it. A matrix whose row length is no multiple of 32 is stored as float16. The command prints what
is kept at more bits, and the size before and after. llama.cpp opens the file, and so does fastllm, which computes with
the weights in this format.

With --text, it measures the perplexity before and after on the beginning of a text: exp of the mean loss per token, in
windows of at most 512 tokens, each evaluated by itself. SRC is as for `fastllm convert`; if it is already quantised, it
loses accuracy a second time.

examples:
  fastllm quantize SmolLM2-135M SmolLM2-135M-q8_0.gguf --type q8_0
  fastllm quantize runs/mine mine.gguf --type q4_1 --no-tokenizer
  fastllm quantize SmolLM2-135M small.gguf --type q4_0 --text held-out.txt --tokens 20000 --json cost.json
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, FastllmError
from .convert import add_writing, check_names, progress, size_text
from .output_option import check_output

if TYPE_CHECKING:
    from ..model import Model

TYPES = ("q8_0", "q4_0", "q4_1")
WINDOW = 512  # most tokens in a sequence
TOKENS = 10_000
CHARACTERS_A_TOKEN = 32  # more than a token has on average, with any tokenizer


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the model")
    parser.add_argument("target", metavar="DST.gguf", help="the file to write")
    parser.add_argument("--type", type=str.lower, choices=TYPES, required=True, metavar="TYPE", help=", ".join(TYPES))
    parser.add_argument("--text", metavar="FILE", help="measure the perplexity on this text, before and after")
    parser.add_argument("--tokens", type=int, metavar="N",
                        help=f"how many of its first tokens to predict (default: {TOKENS:,})")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    add_writing(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..atomic import write_json
    from ..conversion import GGUF, check_target, load_source, names_gguf, write

    if not names_gguf(arguments.target):
        raise ConfigError(f"a quantised model is a GGUF file, {GGUF}; got {arguments.target}; add {GGUF} to its name")
    if arguments.tokens is not None and arguments.text is None:
        raise ConfigError("--tokens goes with --text; got no text; add --text FILE or drop it")
    tokens = TOKENS if arguments.tokens is None else arguments.tokens
    if tokens < 1:
        raise ConfigError(f"--tokens must be 1 or more; got {tokens}; leave it out for {TOKENS:,}")
    check_names(arguments.source, arguments.target)
    check_target(arguments.target, arguments.force)
    if arguments.json:
        check_output("--json", arguments.json, arguments.source, arguments.target, arguments.text)
    before = None
    if arguments.text is not None:  # first, so that a missing text is noticed before the work
        before = Measure(arguments.source, Path(arguments.text), tokens)
    source = load_source(arguments.source, tokenizer=not arguments.no_tokenizer)
    with progress(arguments.target) as report:
        write(source, arguments.target, arguments.type, force=arguments.force, progress=report)
    size, kept = _written(Path(arguments.target), arguments.type.upper())
    file_size = os.path.getsize(arguments.target)
    kinds = " and ".join(sorted(source.kinds))
    print(f"before  {size_text(source.nbytes)}, {kinds}")
    print(f"after   {size_text(size)}, {arguments.type.upper()}: {size / source.nbytes:.1%}; "
          f"the file {size_text(file_size)}")  # fmt: skip
    for kind, names in kept.items():
        print(f"{kind:<7} {_listed(names)}")
    figures: dict[str, Any] = {
        "source": {"kinds": sorted(source.kinds), "bytes": source.nbytes},
        "target": {"kind": arguments.type.upper(), "bytes": size, "file_bytes": file_size, "kept": kept},
    }
    if before is not None:
        after = before.of(arguments.target)
        print(
            f"perplexity of {before.count:,} tokens of {arguments.text} in windows of {before.window}: "
            f"{before.perplexity:.4f} before, {after:.4f} after, {after / before.perplexity - 1:+.2%}"
        )
        figures["perplexity"] = {
            "before": before.perplexity, "after": after, "tokens": before.count, "window": before.window,
        }  # fmt: skip
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


class Measure:
    """The perplexity of a model on the beginning of a text, and of others on the same tokens.

    count   number of tokens predicted
    window  most tokens in a sequence
    """

    def __init__(self, model: str, path: Path, tokens: int) -> None:
        from ..checkpoint import load
        from ..records import holds_records, read_text

        if holds_records(path):
            raise DataError(f"--text must be a plain text file; got {path}, which holds records; name a .txt file")
        text = read_text(path, refuse_records=True)[: (tokens + 1) * CHARACTERS_A_TOKEN]
        loaded, tokenizer = load(model)
        self._ids = tokenizer.encode(text)[: tokens + 1]
        if len(self._ids) < 2:
            raise DataError(f"a text to measure on must have at least two tokens; got {len(self._ids)} in {path}; "
                            "name another")  # fmt: skip
        self.count = len(self._ids) - 1
        self.window = min(WINDOW, loaded.config.context, self.count)
        self.perplexity = self._perplexity(loaded)

    def of(self, path: str) -> float:
        """The perplexity of the model in a GGUF file, which needs no tokenizer."""
        from ..formats import open_model
        from ..model import Model

        opened = open_model(path)
        return self._perplexity(Model(opened.config, weights=opened.weights))

    def _perplexity(self, model: Model) -> float:
        from ..compilation import Uses, compile_kernels
        from ..datasets import TokenStream
        from ..training import evaluate

        compile_kernels(model, Uses(measures=True))
        print(f"predicting {self.count:,} tokens ...", file=sys.stderr, flush=True)
        score = evaluate(model, TokenStream(self._ids, self.window))
        if not math.isfinite(score.perplexity):
            raise FastllmError(f"the perplexity must be finite; got a loss of {score.loss}; use another model or text")
        return score.perplexity


def _written(path: Path, kind: str) -> tuple[int, dict[str, list[str]]]:
    """Bytes of all tensors, and the names of those of other kinds, by kind; vectors are summed up by one name."""
    from ..formats.gguf_file import read_gguf_file

    tensors = read_gguf_file(path).tensors
    kept: dict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.kind.name != kind:
            kept[tensor.kind.name].append("norms and biases" if len(tensor.shape) == 1 else name)
    size = sum(tensor.data.nbytes for tensor in tensors.values())
    return size, {kind: list(dict.fromkeys(names)) for kind, names in kept.items()}


def _listed(names: list[str]) -> str:
    most = 4
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
