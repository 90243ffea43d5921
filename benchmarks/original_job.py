"""A job of the size that this library grew from: 25 facts and 53 dialogues, one row an update, 7,800 updates.

    python benchmarks/original_job.py [--backend numba|numpy] [--epochs N] [--json FILE]

The model is the preset rustgpt with a vocabulary of 530. The sequences are random, but as many and with as
many tokens as the original's: 194 in the facts, 1,269 in the dialogues. Adam, global gradient norm clipped
at 5, 100 epochs at a learning rate of 5e-4, then 100 at 1e-4.

Losses and gradients of the backends are compared first. Then they take turns, a few epochs at a time, so that
a slow spell of the machine falls on both. Kernels are compiled before, and how long that takes stands apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from fastllm import Adam, Model, Schedule, Trainer, preset
from fastllm.atomic import write_json
from fastllm.bench import check_gradients, describe_machine, settle
from fastllm.datasets import Example, Examples, pack
from fastllm.peers.cases import random_examples
from fastllm.training import evaluate

CONFIG = preset("rustgpt", vocab_size=530)
PHASES = {"facts": (25, 194, 5e-4), "dialogues": (53, 1269, 1e-4)}  # sequences, tokens in all, learning rate
EPOCHS = 100
EPOCHS_A_TURN = 10


def examples(phase: str) -> list[Example]:
    """The phase's sequences: random tokens, and lengths that chance spreads about their mean."""
    rows, tokens, _ = PHASES[phase]
    rng = np.random.default_rng(0)
    lengths = 3 + rng.multinomial(tokens - 3 * rows, np.full(rows, 1 / rows))
    return random_examples(CONFIG.vocab_size, lengths - 1, seed=0)  # the last token is not read


def train(backend: str, epochs: int) -> Iterator[tuple[int, float, float]]:
    """The job, a few epochs at each `next`: updates, seconds they took, loss after them."""
    model = Model(CONFIG, backend=backend)
    optimizer = Adam(model)
    for phase, (rows, _, learning_rate) in PHASES.items():
        data = Examples(examples(phase), rows_per_update=1)
        trainer = Trainer(model, optimizer, data, Schedule(peak=learning_rate), epochs * rows, max_norm=5.0)
        while trainer.step < trainer.steps:
            settle()
            before, began = trainer.step, time.perf_counter()
            trainer.train(until=before + EPOCHS_A_TURN * rows)
            seconds = time.perf_counter() - began
            yield trainer.step - before, seconds, evaluate(model, data).loss


def first_update(backend: str) -> float:
    """Seconds of one update by itself: the kernels are compiled, or come from the cache."""
    model = Model(CONFIG, backend=backend)
    trainer = Trainer(model, Adam(model), Examples(examples("dialogues"), rows_per_update=1), Schedule(), steps=1)
    began = time.perf_counter()
    trainer.train()
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("numba", "numpy"), help="only this one (default: both)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of each phase (default: {EPOCHS})")
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1:
        parser.error(f"--epochs must be 1 or more; got {arguments.epochs}; raise it")
    backends = [arguments.backend] if arguments.backend else ["numba", "numpy"]

    first = {backend: first_update(backend) for backend in backends}
    check_gradients(CONFIG, pack(examples("dialogues")))
    turns = list(zip(*(train(backend, arguments.epochs) for backend in backends), strict=True))
    results = []
    for backend, mine in zip(backends, zip(*turns, strict=True), strict=True):
        updates, seconds, losses = zip(*mine, strict=True)
        results.append(
            {
                "backend": backend,
                "updates": sum(updates),
                "seconds": sum(seconds),
                "update_ms": [1e3 * time / count for count, time in zip(updates, seconds, strict=True)],  # by turn
                "first_update_seconds": first[backend],
                "loss": losses[-1],
                "machine": describe_machine(),
            }
        )

    print(describe_machine())
    for result in results:
        low, high = np.quantile(result["update_ms"], (0.2, 0.8))
        print(
            f"{result['backend']}: {result['updates']} updates in {result['seconds']:.2f} s, to a loss of "
            f"{result['loss']:.3f}; an update {low:.2f} to {high:.2f} ms (20th to 80th percentile of the turns); "
            f"compiling and one update, before: {result['first_update_seconds']:.2f} s"
        )
    if len(results) == 2:
        print(f"ratio: {results[1]['seconds'] / results[0]['seconds']:.2f}x")
    if arguments.json:
        write_json(arguments.json, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
