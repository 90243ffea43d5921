"""A whole training step, as the Trainer does it, on the kernels and on their twins."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np

from ..config import ModelConfig, preset
from ..datasets import OneBatch, PackedBatch, pack
from ..model import Model
from ..optimizers import AdamW
from ..peers.cases import TrainingCase
from ..schedules import Schedule
from ..training import Trainer
from .timing import Benchmark, CheckError, Contender

# Relative error of the loss and of the whole gradient. A gradient passes through about a hundred sums and functions,
# each of which rounds to 6e-8: added like random errors, that is 6e-7. This allows eight times as much.
TOLERANCE = 5e-6


TRAINING_STEPS = {
    "rustgpt 1x24": TrainingCase(preset("rustgpt", vocab_size=533), [24]),
    "rustgpt 32 rows of 9 to 40": TrainingCase(preset("rustgpt", vocab_size=533), range(9, 41)),
    "nanoGPT CPU 12x64": TrainingCase(
        preset("gpt2", vocab_size=65, width=128, hidden=512, layers=4, heads=4, context=64), [64] * 12
    ),
}


def training_benchmark(name: str) -> Benchmark:
    """The training step of that name: gradients, clipping at norm 1, AdamW."""
    step = TRAINING_STEPS[name]
    batch = pack(step.examples())
    return Benchmark(
        name=f"training_step {name}",
        contenders=tuple(_contender(backend, step.config, batch) for backend in ("numba", "numpy")),
        check=partial(check_gradients, step.config, batch),
        flops=step.flops,
    )


def check_gradients(config: ModelConfig, batch: PackedBatch) -> None:
    """Raise CheckError unless loss and gradients on the kernels equal those on the twins in float64.

    The weights get noise: with biases at 0 and norms at 1, a forgotten one would not show.
    """
    model, twin = Model(config), Model(config, backend="numpy", dtype=np.float64)
    noise = np.float32(0.01) * np.random.default_rng(0).standard_normal(model.trainable.flat.shape, np.float32)
    model.trainable.flat[...] += noise
    twin.trainable.flat[...] = model.trainable.flat
    loss, expected = (m.loss_and_gradients(batch.tokens, batch.targets, batch.starts) for m in (model, twin))
    gradients, right = model.gradients.flat, twin.gradients.flat
    error = float(np.linalg.norm(gradients - right) / np.linalg.norm(right))
    if not abs(loss - expected) <= TOLERANCE * expected or not error <= TOLERANCE:
        raise CheckError(
            f"loss and gradients must equal the float64 twins' to {TOLERANCE:.0e}; got loss {loss:.6f} for "
            f"{expected:.6f} and gradients off by {error:.1e}; this is a bug, please report it"
        )


def _contender(backend: str, config: ModelConfig, batch: PackedBatch) -> Contender:
    model = Model(config, backend=backend)
    trainer = Trainer(model, AdamW(model), OneBatch(batch), Schedule(peak=1e-4), steps=sys.maxsize)
    return Contender(backend, lambda: trainer.train(until=trainer.step + 1))
