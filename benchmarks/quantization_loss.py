"""What quantisation costs: size and perplexity of a model in each kind of GGUF file.

    python benchmarks/quantization_loss.py MODEL TEXT [--tokens 20000] [--json FILE]

The reference is MODEL in float32. Where MODEL is quantised itself, its own kind loses next to nothing here, as its
weights lie where that kind can have them: take a model of floats to compare kinds. The perplexity is that of
`fastllm quantize --text`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from fastllm.atomic import write_json
from fastllm.cli.quantize import Measure
from fastllm.conversion import load_source, write
from fastllm.machine import describe, usable_cores

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
ROW = "{:<6} {:>12} {:>8} {:>12} {:>10}"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(words)
    measure = Measure(arguments.model, Path(arguments.text), arguments.tokens)
    source = load_source(arguments.model, tokenizer=False)
    rows: list[dict[str, Any]] = []
    print(ROW.format("kind", "bytes", "of f32", "perplexity", "change"))
    with tempfile.TemporaryDirectory() as folder:
        for kind in dict.fromkeys(("f32", *arguments.kinds)):
            path = Path(folder) / f"{kind}.gguf"
            write(source, path, kind)
            row = {"kind": kind, "bytes": os.path.getsize(path), "perplexity": measure.of(str(path))}
            path.unlink()
            first = rows[0] if rows else row
            row |= {"size": row["bytes"] / first["bytes"], "change": row["perplexity"] / first["perplexity"] - 1}
            rows.append(row)
            print(ROW.format(kind, f"{row['bytes']:,}", f"{row['size']:.1%}", f"{row['perplexity']:.4f}",
                             f"{row['change']:+.2%}"), flush=True)  # fmt: skip
    if arguments.json:
        result = {
            "machine": describe(usable_cores(), "numpy", "numba"),
            "model": Path(arguments.model).name,
            "kinds_of_the_model": sorted(source.kinds),
            "text": Path(arguments.text).name,
            "tokens": measure.count,
            "window": measure.window,
            "rows": rows,
        }
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
