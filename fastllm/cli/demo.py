"""Train a small model on the shipped facts and dialogues, and chat with it.

The untrained model answers a question (with gibberish), is trained on facts and then on dialogues, and answers again;
the loss is drawn, and you can chat with it. Without a terminal, or with --no-chat, the demo ends before the chat.

examples:
  fastllm demo
  fastllm demo --language zh
  fastllm demo --rows-per-update 1 --run runs/one-row
  fastllm demo --run runs/one-row --resume
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..training.config import JobConfig
    from ..training.job import Job

QUESTIONS = {"en": "How do mountains form?", "zh": "太阳从哪边升起？"}
TOKENIZERS = {"en": "word", "zh": "character"}  # Chinese is written without spaces
ROWS_PER_UPDATE = 16
EPOCHS = 100
LEARNING_RATES = {"facts": 5e-4, "dialogues": 1e-4}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", choices=sorted(QUESTIONS), help="of the data (default: en)")
    parser.add_argument("--rows-per-update", type=int, metavar="N",
                        help=f"texts or dialogues in a batch (default: {ROWS_PER_UPDATE})")  # fmt: skip
    parser.add_argument("--epochs", type=int, help=f"passes over the data in each phase (default: {EPOCHS})")
    parser.add_argument("--seed", type=int, help="for weights and shuffling (default: 0)")
    parser.add_argument("--run", metavar="DIR", help="the run's folder (default: runs/demo-LANGUAGE)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --run, which must be given")
    parser.add_argument("--no-chat", action="store_true", help="end after training")


def demo_job(language: str, rows_per_update: int, epochs: int, seed: int) -> JobConfig:
    """The demo as a job: facts, then dialogues, Adam, gradients clipped at 5."""
    from ..training.config import JobConfig

    # A batch of n rows means n times fewer updates, and Adam's step does not grow with the batch: multiplying the rate
    # by sqrt(n) makes up for it (Malladi et al. 2022, arXiv:2205.10287). The rate for facts is high enough as it is:
    # multiplied by sqrt(8), for 8 rows, it made the loss spike.
    rates = {**LEARNING_RATES, "dialogues": LEARNING_RATES["dialogues"] * max(1, rows_per_update) ** 0.5}

    def phase(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "data": f"fastllm:{language}/{name}.jsonl",
            "epochs": epochs,
            "learning_rate": rates[name],
            "rows_per_update": rows_per_update,
        }

    answering: dict[str, Any] = {"validation": f"fastllm:{language}/validation.jsonl"}
    if rows_per_update > 1:
        # Joined dialogues teach it to answer after other turns; they also raise the exact answers to unseen wordings
        # from 45% to 90%. A falling rate at the end removes noise: from 96% of the training questions to all.
        answering |= {"join": True, "schedule": "wsd"}
    return JobConfig.from_dict(
        {
            "seed": seed,
            "checkpoint_seconds": 5.0,
            "tokenizer": {"type": TOKENIZERS[language]},
            "model": {"preset": "rustgpt"},
            "optimizer": {"name": "adam", "max_norm": 5.0},
            "phases": [phase("facts"), phase("dialogues") | answering],
        }
    )


def run(arguments: argparse.Namespace) -> int:
    from ..training.job import Job
    from ..training.run import free_folder
    from ..training.session import prepare, train_and_plot

    if arguments.resume:
        if not arguments.run:
            raise ConfigError("--resume needs the folder of the run; got none; add --run DIR")
        for name in ("language", "rows_per_update", "epochs", "seed"):
            if getattr(arguments, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"--resume continues a run as it began; got {option} too; drop it or start a new run")
        job = Job.resume(arguments.run)
        _language(job)
    else:
        language = arguments.language or "en"
        rows = ROWS_PER_UPDATE if arguments.rows_per_update is None else arguments.rows_per_update
        epochs = EPOCHS if arguments.epochs is None else arguments.epochs
        folder = Path(arguments.run) if arguments.run else free_folder(f"runs/demo-{language}")
        job = Job.start(folder, demo_job(language, rows, epochs, arguments.seed or 0))
    prepare(job)
    if not arguments.resume:
        _answer(job, "before training", max_tokens=16)
    if status := train_and_plot(job):
        return status
    _answer(job, "after training")
    _examine(job)
    if arguments.no_chat or not sys.stdin.isatty():
        return 0
    from ..generation.config import GenerationConfig
    from .chat import chat_loop

    return chat_loop(job.model, job.tokenizer, GenerationConfig(), sys.stdin, sys.stdout)


def _language(job: Job) -> str:
    """The language of a demo job's data. Raises ConfigError for another job."""
    data = job.config.phases[-1].data
    for language in QUESTIONS:
        if data == f"fastllm:{language}/dialogues.jsonl":
            return language
    raise ConfigError(f"demo only continues runs of its own; got one that trains on {data}; use `train --resume`")


def _answer(job: Job, when: str, max_tokens: int | None = None) -> None:
    """Ask the demo's question and print the answer."""
    from ..generation import Chat

    question = QUESTIONS[_language(job)]
    answer = "".join(Chat(job.model, job.tokenizer, max_tokens=max_tokens).ask(question))
    print(f"{when}:\n  you: {question}\n  model: {answer}", flush=True)


def _examine(job: Job) -> None:
    """Print how many questions are answered word for word: the training questions, and rewordings of them."""
    from ..records import read_records
    from ..training.answers import exact_answers
    from ..training.source import resolve

    last = job.config.phases[-1]
    for path, what in ((last.data, "training questions"), (last.validation, "questions in unseen wordings")):
        if path:
            right, total = exact_answers(job.model, job.tokenizer, read_records(resolve(path)))
            print(f"{what} answered exactly: {right} of {total} ({right / total:.1%})", flush=True)
