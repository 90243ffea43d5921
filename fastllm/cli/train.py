"""Train a model on your own data: a text file, a folder of them, or JSON Lines of texts or dialogues.

The run folder holds config.toml (everything needed to run it again), metrics.jsonl, checkpoint/ and loss.svg.
Ctrl-C stops after the current step and keeps the checkpoint; --resume goes on from there.

examples:
  fastllm train shakespeare.txt --steps 2000
  fastllm train dialogues.jsonl --tokenizer word --epochs 50 --run runs/mine
  fastllm train --config job.toml --run runs/job
  fastllm train --run runs/job --resume
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", help="text file, folder of text files, or .jsonl file")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with the whole job; see docs/training.md")
    parser.add_argument("--run", metavar="DIR", help="the run's folder (default: runs/ and the data's name)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run")
    parser.add_argument("--validation", metavar="FILE", help="data to validate on (a text gives its last tenth)")
    parser.add_argument(
        "--preset", default="nano", help="model to start from: nano, rustgpt, gpt2, llama (default: nano)"
    )
    parser.add_argument("--tokenizer", choices=("word", "character", "byte"),
                        help="default: word for .jsonl, character for text")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="number of updates (default for text: 2000)")
    length.add_argument("--epochs", type=int, help="times through the data (default for .jsonl: 50)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate (default: 0.001)")
    parser.add_argument(
        "--rows-per-update", type=int, default=16, metavar="N", help="sequences in a batch (default: 16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and shuffling (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    from ..training.job import Job
    from ..training.session import prepare, train_and_plot

    if arguments.resume:
        if not arguments.run or arguments.data or arguments.config:
            raise ConfigError(
                "--resume goes with --run alone; the run's own config.toml says the rest; drop the others"
            )
        job = Job.resume(arguments.run)
        if job.is_done:
            print(f"the run in {arguments.run} is complete; nothing is left to train")
            return 0
    else:
        job = Job.start(_folder(arguments), _config(arguments))
    prepare(job)
    return train_and_plot(job)


def _folder(arguments: argparse.Namespace) -> Path:
    from ..training.run import free_folder

    if arguments.run:
        return Path(arguments.run)
    return free_folder(Path("runs") / Path(arguments.data or arguments.config or "run").stem)


def _config(arguments: argparse.Namespace) -> Any:
    from ..training.config import JobConfig

    if bool(arguments.data) == bool(arguments.config):
        given = "both" if arguments.data else "neither"
        raise ConfigError(f"train takes a data file or --config FILE; got {given}; see `fastllm train --help`")
    if arguments.config:
        return JobConfig.read(arguments.config)
    is_lines = Path(arguments.data).suffix == ".jsonl"
    if arguments.steps is not None:
        length = {"steps": arguments.steps}
    elif arguments.epochs is not None or is_lines:
        length = {"epochs": 50 if arguments.epochs is None else arguments.epochs}
    else:
        length = {"steps": 2000}
    phase: dict[str, Any] = {
        "name": "train",
        "data": str(Path(arguments.data).absolute()),
        "learning_rate": arguments.learning_rate,
        "schedule": "cosine",
        "warmup": 100,
        "final_learning_rate": arguments.learning_rate / 10,
        "rows_per_update": arguments.rows_per_update,
        "join": is_lines,
        **length,
    }
    if arguments.validation:
        phase["validation"] = str(Path(arguments.validation).absolute())
    return JobConfig.from_dict(
        {
            "seed": arguments.seed,
            "tokenizer": {"type": arguments.tokenizer or ("word" if is_lines else "character")},
            "model": {"preset": arguments.preset},
            "optimizer": {"name": "adamw", "beta2": 0.99, "weight_decay": 0.1},
            "phases": [phase],
        }
    )
