"""Merge a low-rank adapter into its model: the result is a checkpoint that no longer needs either of the two.

SOURCE is the run folder of a training with --lora, or a folder with PEFT's adapter_config.json. The merged weights are
float32. If Hugging Face has a name for the architecture, transformers opens the folder too.

examples:
  fastllm merge runs/tuned merged
  fastllm chat merged
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConfigError, FormatError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a run folder or an adapter's folder")
    parser.add_argument("destination", metavar="DESTINATION", help="the checkpoint folder to write")


def run(arguments: argparse.Namespace) -> int:
    from ..checkpoint import load, save

    target = Path(arguments.destination)
    if target.suffix.lower() == ".gguf":
        raise ConfigError(f"merge writes a folder; got {target}; name a folder, and convert that to a GGUF file")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} must be a new or an empty folder; got one that is not; choose another")
    model, tokenizer = load(arguments.source)
    if model.adapter is None:
        raise FormatError(f"merge needs a model with an adapter; got {arguments.source}, without one; use it as it is")
    model.merge_adapter()
    save(target, model, tokenizer)
    print(f"merged model: {target} ({model.parameter_count:,} parameters)")
    return 0
