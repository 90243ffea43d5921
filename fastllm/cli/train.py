"""Train a model on your own data: a text file, a folder of them, or JSON (Lines) of texts, dialogues or instructions.

The run folder holds config.toml (everything needed to run it again), metrics.jsonl, checkpoint/ and loss.svg.
Ctrl-C finishes the current update and saves a checkpoint; --resume continues from there.

--model tunes an existing model: one of fastllm's, a Hugging Face folder, a GGUF file. All its parameters are trained,
as float32 in memory. With --lora its weights stay as they are, quantised or not; small low-rank matrices added to them
are trained, and the checkpoint holds only these. `fastllm merge` merges the two into one model.

examples:
  fastllm train shakespeare.txt --steps 2000
  fastllm train dialogues.jsonl --tokenizer word --epochs 50 --run runs/mine
  fastllm train instructions.json --model SmolLM2-135M-Instruct.gguf --lora
  fastllm train --config job.toml --run runs/job
  fastllm train --run runs/job --resume
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import ConfigError

EPOCHS, ROWS, LENGTH, WARMUP = 3, 8, 1024, 10
FULL_RATE, LORA_RATE = 5e-5, 2e-4

LORA = ("rank", "alpha", "targets")  # options that go with --lora


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", help="text file, folder of text files, .jsonl, .ndjson or .json file")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with the whole job; see docs/training.md")
    parser.add_argument("--run", metavar="DIR", help="the run's folder (default: runs/ and the data's name)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --run")
    parser.add_argument("--validation", metavar="FILE", help="data to validate on (default: the last tenth of a text; "
                        "none for other data)")  # fmt: skip
    parser.add_argument("--preset", help="configuration of a new model: nano, rustgpt, gpt2, llama (default: nano)")
    parser.add_argument("--tokenizer", metavar="KIND",
                        help="word, character, byte, bpe, or the path of an existing one (default: word for JSON "
                        "(Lines) in a language with spaces between words, else character)")  # fmt: skip
    parser.add_argument("--vocab-size", type=int, metavar="N",
                        help="most tokens in the vocabulary (default: no limit; for bpe 4096)")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="number of updates (default for text: 2000)")
    length.add_argument("--epochs", type=int, help="passes over the data (default for JSON (Lines): 50)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (default: 0.001)")
    parser.add_argument("--rows-per-update", type=int, metavar="N", help="sequences in a batch (default: 16)")
    parser.add_argument("--sequence-length", type=int, metavar="N",
                        help="most tokens in a sequence (default: the model's context)")  # fmt: skip
    parser.add_argument("--seed", type=int, help="for weights and shuffling (default: 0)")
    tuning = parser.add_argument_group(
        "tuning",
        f"Defaults with --model: {EPOCHS} epochs, {ROWS} rows per update, at most {LENGTH} tokens per sequence,\n"
        f"learning rate {FULL_RATE:g}, with --lora {LORA_RATE:g}.",
    )
    tuning.add_argument("--model", metavar="PATH", help="the model to tune, with its tokenizer")
    tuning.add_argument("--lora", action="store_true", help="only train low-rank matrices added to its linear layers")
    tuning.add_argument("--rank", type=int, metavar="R", help="rank of these matrices (default: 8)")
    tuning.add_argument("--alpha", type=float, metavar="A",
                        help="their output is multiplied by alpha / rank (default: twice the "
                        "rank)")  # fmt: skip
    tuning.add_argument("--targets", metavar="NAMES", help="linear layers that get them, separated by commas: "
                        "query,key,value,output,gate,up,down (default: all)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from ..training.job import Job
    from ..training.run import CONFIG
    from ..training.session import finish, prepare, train_and_plot

    if arguments.resume:
        if not arguments.run:
            raise ConfigError("--resume continues the run in --run; got none; name its folder")
        _check_alone(arguments, "resume", f"the run's own {CONFIG} says the rest")
        job = Job.resume(arguments.run)
        if job.is_done:
            print(f"the run in {arguments.run} is complete; nothing is left to train")
            return finish(job)
    else:
        job = Job.start(_folder(arguments), _config(arguments))
    prepare(job)
    return train_and_plot(job)


def _folder(arguments: argparse.Namespace) -> Path:
    from ..training.run import free_folder

    if arguments.run:
        return Path(arguments.run)
    named = Path(os.path.abspath(arguments.data or arguments.config or "run"))  # "." has no name, and ".." is no name
    return free_folder(Path("runs") / (named.stem or "run"))


def _config(arguments: argparse.Namespace) -> Any:
    from ..records import holds_records
    from ..training.config import JobConfig

    if bool(arguments.data) == bool(arguments.config):
        given = "both" if arguments.data else "neither"
        raise ConfigError(f"train takes a data file or --config FILE; got {given}; see `fastllm train --help`")
    if arguments.data and Path(arguments.data).suffix.lower() == ".toml":  # as text, a job would train on itself
        raise ConfigError(f"a job's file goes with --config; got {arguments.data} as data; write --config before it")
    _check(arguments)
    if arguments.config:
        return JobConfig.read(arguments.config)
    is_tuning, holds = arguments.model is not None, holds_records(arguments.data)
    if arguments.steps is not None:
        length = {"steps": arguments.steps}
    elif arguments.epochs is not None or is_tuning or holds:
        length = {"epochs": (EPOCHS if is_tuning else 50) if arguments.epochs is None else arguments.epochs}
    else:
        length = {"steps": 2000}
    usual = (LORA_RATE if arguments.lora else FULL_RATE) if is_tuning else 1e-3
    rate = usual if arguments.learning_rate is None else arguments.learning_rate
    rows = (ROWS if is_tuning else 16) if arguments.rows_per_update is None else arguments.rows_per_update
    phase: dict[str, Any] = {
        "name": "train",
        "data": _absolute(arguments.data),
        "learning_rate": rate,
        "schedule": "cosine",
        "warmup": WARMUP if is_tuning else 100,
        "final_learning_rate": rate / 10,
        "rows_per_update": rows,
        "join": holds and not is_tuning,
        **length,
    }
    if is_tuning or arguments.sequence_length is not None:
        phase["sequence_length"] = LENGTH if arguments.sequence_length is None else arguments.sequence_length
    if arguments.validation is not None:
        phase["validation"] = _absolute(arguments.validation)
    tables: dict[str, Any] = {"seed": arguments.seed or 0, "phases": [phase]}
    if is_tuning:
        # A name on the hub stays as it is.
        path = os.path.abspath(arguments.model) if os.path.exists(arguments.model) else arguments.model
        tables |= {"model": {"path": path}, "optimizer": {"name": "adamw", "weight_decay": 0.0}}
        if arguments.lora:
            tables["lora"] = _lora(arguments)
        else:
            tables["checkpoint_seconds"] = 300.0  # each is three times the model's size, with the optimizer's moments
    else:
        tables |= {
            "tokenizer": _tokenizer(arguments),
            "model": {"preset": arguments.preset or "nano"},
            "optimizer": {"name": "adamw", "beta2": 0.99, "weight_decay": 0.1},
        }
    return JobConfig.from_dict(tables)


def _absolute(path: str) -> str:
    """A data file's absolute path; the name of a file shipped with the library stays as it is."""
    from ..training.source import SHIPPED

    return path if not path or path.startswith(SHIPPED) else str(Path(path).absolute())


def _tokenizer(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..tokenizers import TOKENIZERS

    given = _usual_tokenizer(arguments.data) if arguments.tokenizer is None else arguments.tokenizer
    table: dict[str, Any] = {"type": given}
    if given not in TOKENIZERS:
        if not os.path.exists(given):
            raise ConfigError(
                f"--tokenizer must be {', '.join(TOKENIZERS)}, or the path of one; got {given!r:.200}, neither; "
                "choose one of them"
            )
        table = {"path": os.path.abspath(given)}
        if arguments.vocab_size is not None:
            raise ConfigError(
                f"--vocab-size is for a new tokenizer; got --tokenizer {given:.200}, an existing one; drop one of them"
            )
    return table if arguments.vocab_size is None else table | {"max_size": arguments.vocab_size}


def _usual_tokenizer(path: str) -> str:
    """Words for records in a language with spaces between words; else characters."""
    from ..records import holds_records, read_records, record_texts
    from ..tokenizers.word import has_spaces
    from ..training.source import resolve

    if not holds_records(path):
        return "character"
    return "word" if has_spaces(record_texts(read_records(resolve(path)))) else "character"


def _check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for options that don't go together."""
    if arguments.config:
        _check_alone(arguments, "config", "the file says the rest")
    given = [name for name in ("preset", "tokenizer", "vocab_size") if getattr(arguments, name) is not None]
    if arguments.model is not None and given:
        raise ConfigError(f"--model goes without --{given[0].replace('_', '-')}: it has its own; got both; drop one")
    if arguments.model is None and arguments.lora:
        raise ConfigError("--lora needs an existing model; got none; name it with --model")
    given = [name for name in LORA if getattr(arguments, name) is not None]
    if given and not arguments.lora:
        raise ConfigError(f"--{given[0]} goes with --lora; got it alone; add --lora or drop it")


def _check_alone(arguments: argparse.Namespace, option: str, reason: str) -> None:
    """Raise ConfigError if anything is given besides `option` and --run."""
    others = vars(arguments).keys() - {option, "run", "command"}
    given = sorted(name for name in others if not any(getattr(arguments, name) is off for off in (None, False)))
    if given:
        name = "a data file" if given[0] == "data" else f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"--{option} goes with --run alone, for {reason}; got {name} too; drop it")


def _lora(arguments: argparse.Namespace) -> dict[str, Any]:
    rank = 8 if arguments.rank is None else arguments.rank
    table = {"rank": rank, "alpha": 2.0 * rank if arguments.alpha is None else arguments.alpha}
    if arguments.targets is not None:
        table["targets"] = [name.strip() for name in arguments.targets.split(",")]
    return table
