"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any

from ..compilation import Uses, helping
from ..config import whole_number
from ..datasets import Dataset, PackedBatch
from ..errors import TrainingError
from ..inputs import checked_seed
from ..interrupts import uninterrupted
from ..layers.score import Score
from ..model import Model
from ..optimizers import Optimizer, clip_scale, gradient_norm
from .threads import StepThreads


@dataclass(frozen=True, slots=True)
class Step:
    """What one update did.

    step           number of updates so far, this one counted
    tokens         tokens read in this update
    score          loss and accuracy on this update's batch, before the update
    gradient_norm  global L2 norm, before clipping
    learning_rate  used in this update
    seconds        this update took
    """

    step: int
    tokens: int
    score: Score
    gradient_norm: float
    learning_rate: float
    seconds: float


Callback = Callable[[Step], None]
LARGEST_NORM = 1e18  # of gradients as an optimizer gets them: it squares them, as float32


class Trainer:
    """Trains a model on a data set.

    model       whose `trainable` parameters learn
    optimizer   made for this model
    dataset     gives the batch of each step: datasets.Examples, datasets.TokenStream, or your own (datasets.Dataset)
    schedule    the learning rate of a step, counted from 0: a Schedule, or your own function
    steps       number of updates
    max_norm    gradients are clipped to this global L2 norm; 0: no clipping
    accumulate  number of parts that each batch is computed in, to save memory; the result is the same, but for
                dropout's masks
    seed        of dropout's masks, from 0 to 2^32 - 1
    callbacks   called with a Step after every update

    Raises ValueError for an option out of range and for an optimizer of another model, TypeError for an argument of
    another type.

    Steps of a small model are timed on different numbers of threads, and run on the fastest number.

    Ctrl-C ends the training after the current update and its callbacks, and calling `train` again goes on; a second
    Ctrl-C ends it at once.

    The batch of a step, its masks and its learning rate follow from the step's number. So a trainer that is
    given the parameters, the optimizer's state and `step` of another goes on as that would have, bit by bit.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        dataset: Dataset,
        schedule: Callable[[int], float],
        steps: int,
        max_norm: float = 1.0,
        accumulate: int = 1,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        _check_kinds(model, optimizer, dataset, schedule, max_norm)
        if not 0 <= max_norm < math.inf:
            raise ValueError(f"max_norm must be finite and not negative; got {max_norm}; 0 never clips")
        steps, accumulate = whole_number(steps, "steps"), whole_number(accumulate, "accumulate")
        if accumulate < 1 or steps < 1:
            raise ValueError(f"accumulate and steps must be 1 or more; got {accumulate} and {steps}; raise them")
        if not optimizer.is_of(model):
            raise ValueError("an optimizer must be made for this model as it is now; got another's; make a new one")
        self.model = model
        self.optimizer = optimizer
        self.dataset = dataset
        self.schedule = schedule
        self.steps = steps
        self.max_norm = max_norm
        self.accumulate = accumulate
        self.seed = checked_seed(seed, "seed")
        if self.seed >= 1 << 32:
            raise ValueError(f"a trainer's seed must be from 0 to 2^32 - 1; got {seed}; use another")
        self.callbacks = _listed(callbacks)
        self.step = 0
        self._threads = StepThreads()
        self._is_first = True
        # Forward, and two gradients of each product: a multiplication and an addition each.
        self._operations_a_token = 6 * model.parameter_count

    def __repr__(self) -> str:
        return f"<Trainer of {self.model!r}: update {self.step} of {self.steps}>"

    def train(self, until: int | None = None) -> None:
        """Train up to update number `until` (None: the last), from where `step` stands.

        Raises TrainingError when loss or gradients are no longer finite, ValueError for a batch without a target; the
        parameters are then those of the last good update.
        """
        last = self.steps if until is None else min(whole_number(until, "until"), self.steps)
        with uninterrupted() as block:
            while not block.came and self.step < last:
                began = time.perf_counter()
                batch = self.dataset.batch(self.step)
                with self._helped(), self._on_threads(len(batch.tokens)):
                    score, norm, rate = self._update(batch)
                done = Step(self.step, len(batch.tokens), score, norm, rate, time.perf_counter() - began)
                for callback in self.callbacks:
                    callback(done)

    def _update(self, batch: PackedBatch) -> tuple[Score, float, float]:
        """Score and gradient norm before the update, and the learning rate of the update."""
        score = Score()
        targets = batch.target_count
        if not targets:
            raise ValueError(
                f"a batch needs at least one target >= 0; got none for step {self.step + 1}; leave such examples out"
            )
        for number, part in enumerate(batch.split(self.accumulate)):
            score += self.model.score_and_gradients(
                part.tokens,
                part.targets,
                part.starts,
                targets,
                self._dropout_seed(number),
                accumulate=number > 0,
            )
        if score.targets != targets:
            raise ValueError(
                f"a batch must have a target for each token, and starts from 0 to the number of tokens; got "
                f"{len(batch.tokens)} tokens, {len(batch.targets)} targets and starts {batch.starts[:8].tolist()} for "
                f"step {self.step + 1}; see PackedBatch"
            )
        norm = gradient_norm(self.model)
        scale = clip_scale(norm, self.max_norm)
        if not math.isfinite(score.total) or not norm * scale <= LARGEST_NORM:
            raise TrainingError(
                f"loss and gradients must stay finite; got loss {score.loss:.4g} and gradient norm {norm:.4g} at "
                f"step {self.step + 1}; lower the learning rate or clip harder"
            )
        rate = self.schedule(self.step)
        with uninterrupted(is_short=True):  # what is done is counted
            self.optimizer.step(rate, scale)
            self.step += 1
        return score, norm, rate

    def _helped(self) -> AbstractContextManager[object]:
        """A block in which kernels are compiled on several cores: in the first update, which compiles them."""
        is_first, self._is_first = self._is_first, False
        return helping(self.model, Uses(self.optimizer)) if is_first else nullcontext()

    def _on_threads(self, tokens: int) -> AbstractContextManager[None]:
        """A block in which a step of this many tokens is computed, on fewer threads where that is faster."""
        if self.model.backend != "numba":
            return nullcontext()
        return self._threads.step(self._operations_a_token * tokens / self.accumulate, tokens)

    def _dropout_seed(self, part: int) -> int | None:
        """A seed for each part of each step, all different; None without dropout."""
        if not self.model.config.dropout:
            return None
        # The seed's 32 bits above 31 bits of counting: kernels take what fits a signed 64-bit integer.
        return ((self.seed << 31) + int(self.step) * self.accumulate + part) % (1 << 63)


def _check_kinds(model: Any, optimizer: Any, dataset: Any, schedule: Any, max_norm: Any) -> None:
    """Raise TypeError for an argument of another type, before it is used."""
    if not isinstance(model, Model) or not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"a Model is trained by an Optimizer; got {type(model).__name__} and {type(optimizer).__name__}"
        )
    if not callable(schedule):
        raise TypeError(
            f"a schedule gives the learning rate of a step; got {schedule!r:.40}; write Schedule(peak=1e-3)"
        )
    if not hasattr(dataset, "batch"):
        raise TypeError(
            f"a data set gives the batch of a step; got {type(dataset).__name__}; make Examples or a TokenStream of it"
        )
    if not isinstance(max_norm, Real):
        raise TypeError(f"max_norm must be a number; got {max_norm!r:.40}; 0 never clips")


def _listed(callbacks: Iterable[Callback]) -> list[Callback]:
    """The callbacks as a list. Raises TypeError for what is no function."""
    if callable(callbacks):
        raise TypeError("callbacks must be several functions; got one; write [function]")
    listed = list(callbacks)
    for callback in listed:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions; got {callback!r:.40} among them; leave it out")
    return listed


def evaluate(model: Model, dataset: Dataset) -> Score:
    """Loss and accuracy over a whole data set, each batch once. Raises TypeError for what is no data set."""
    return sum(scores(model, dataset), Score())


def scores(model: Model, dataset: Dataset, every: int = 1) -> Iterator[Score]:
    """The score of each batch of a data set in order; with `every` above 1, of every second, third, ... batch."""
    if not hasattr(dataset, "in_order"):
        raise TypeError(
            f"a data set gives all its batches in order; got {type(dataset).__name__}; make Examples or a TokenStream"
        )
    for batch in islice(dataset.in_order(), 0, None, every):
        if batch.target_count:
            yield model.score(batch.tokens, batch.targets, batch.starts)
