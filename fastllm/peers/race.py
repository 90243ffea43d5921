"""The race: contenders run in processes of their own, are checked against each other, then timed in turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import FastllmError
from ..machine import THREAD_VARIABLES
from ..parameters import Parameters, initialise
from .cases import SEED, Case, TrainingCase
from .generation import GenerationCase
from .worker import CONTENDERS, serve

# Relative error between float32 computations of the same quantity in different orders.
TOLERANCE = 2e-5
# After some updates: Adam divides small gradients by the root of their squares, which magnifies rounding errors.
STEPS_TOLERANCE = 1e-3
STEPS_CHECKED = 3
WEIGHTS_TOLERANCE = 5e-3  # relative to the change by these updates; weight decay's part of it is even smaller
BLOCK_SECONDS = 0.3  # of a contender's turn, at least one step
PAUSE = 0.15  # seconds before each turn: a pool's threads spin for up to 100 ms before they sleep
CACHES = 0.5  # seconds: a shorter step is done once before it is timed, to bring back data and threads


T = TypeVar("T")


class PeerError(FastllmError):
    """A contender failed, or its results differ from the others'."""


@dataclass
class Result:
    """One contender in one case.

    peak_bytes  peak memory of the whole process
    seconds     per step, a figure for each round
    """

    contender: str
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass
class Race:
    """The results of a case.

    limits  of the machine, a dictionary for each round; see worker.Probe
    """

    name: str
    target: float
    flops: int
    results: list[Result]
    limits: list[dict[str, float]]


class Worker:
    """This process's handle of a contender's process."""

    def __init__(self, name: str, case: Case | GenerationCase | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, case), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, method: str, *arguments: Any) -> Any:
        """What the worker's method returns. Raises PeerError if it fails."""
        try:
            self._connection.send((method, arguments))
            is_done, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise PeerError(
                f"{self.name} must run until the race is over; its process ended with exit code "
                f"{self._process.exitcode}; is there enough memory?"
            ) from None
        if not is_done:
            raise PeerError(f"{self.name} failed in {method}: {answer}")
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()


@contextlib.contextmanager
def threads_of_processes(count: int) -> Iterator[None]:
    """A block in which processes that are started use `count` threads."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def race(
    name: str, case: Case, target: float, threads: int, rounds: int, contenders: tuple[str, ...] = CONTENDERS
) -> Race:
    """Check the contenders against the first of them, then time them in turns.

    Raises PeerError.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastllm-peers-")))
        stack.enter_context(threads_of_processes(threads))
        if isinstance(case, TrainingCase):
            _weights(case).tofile(folder / "weights")
        if "fastllm" in contenders:
            warm_up(case, ("load", folder), ("steps", 1))
        workers = []
        for contender in contenders:
            workers.append(Worker(contender, case))
            stack.callback(workers[-1].close)
        probe = Worker("probe", None)
        stack.callback(probe.close)
        for worker in workers:
            worker("load", folder)
        results = [Result(worker.name) for worker in workers]
        _check(workers, folder)
        calls = []
        for worker in workers:
            once, _ = worker("steps", 1)
            calls.append((once, max(1, int(BLOCK_SECONDS / once))))
        limits = []
        entries = list(zip(workers, results, calls, strict=True))
        for number in range(rounds):
            for worker, result, (once, count) in in_turn(entries, number):
                time.sleep(PAUSE)
                if once < CACHES:
                    worker("steps", 1)
                seconds, _ = worker("steps", count)
                result.seconds.append(seconds)
            time.sleep(PAUSE)
            limits.append(probe("limits"))
        for worker, result in zip(workers, results, strict=True):
            result.peak_bytes = worker("peak_memory")
    return Race(name, target, case.flops, results, limits)


def warm_up(case: Case | GenerationCase, *requests: tuple[Any, ...]) -> None:
    """Compile the kernels that some requests (methods with arguments) need, so that they are on disk.

    Otherwise the compiler's memory and time would count in the measurements.
    """
    worker = Worker("fastllm", case)
    try:
        for method, *arguments in requests:
            worker(method, *arguments)
    finally:
        worker.close()


def _weights(case: TrainingCase) -> np.ndarray:
    """Random weights, including biases and norms: with those at 0 and 1, a forgotten one would not show."""
    parameters = Parameters(case.config)
    initialise(parameters, case.config, SEED)
    noise = np.random.default_rng(SEED).standard_normal(parameters.flat.shape, dtype=np.float32)
    return parameters.flat + np.float32(0.01) * noise


def in_turn(entries: Sequence[T], number: int) -> Sequence[T]:
    """Contenders in the order of a round: rotated, so that each is first in turn."""
    first = number % len(entries)
    return [*entries[first:], *entries[:first]]


def _check(workers: list[Worker], folder: Path) -> None:
    """Raise PeerError unless losses and gradients agree, and after some updates losses and weights do."""
    losses = [worker("gradients", folder) for worker in workers]
    expected = np.fromfile(folder / workers[0].name, np.float32)
    size = np.linalg.norm(expected)
    for worker, loss in zip(workers[1:], losses[1:], strict=True):
        error = float(np.linalg.norm(np.fromfile(folder / worker.name, np.float32) - expected) / size)
        if not abs(loss - losses[0]) <= TOLERANCE * abs(losses[0]) or not error <= TOLERANCE:
            raise PeerError(
                f"loss and gradients must agree to {TOLERANCE:.0e}; got loss {loss:.6f} from {worker.name} and "
                f"{losses[0]:.6f} from {workers[0].name}, and gradients {error:.1e} apart; nothing was timed"
            )
    after = [worker("steps", STEPS_CHECKED)[1] for worker in workers]
    for worker, loss in zip(workers[1:], after[1:], strict=True):
        if not abs(loss - after[0]) <= STEPS_TOLERANCE * abs(after[0]):
            raise PeerError(
                f"losses after {STEPS_CHECKED} updates must agree to {STEPS_TOLERANCE:.0e}; got {loss:.6f} from "
                f"{worker.name} and {after[0]:.6f} from {workers[0].name}; nothing was timed"
            )
    have_weights = [worker("weights", folder) for worker in workers]
    if not all(have_weights):
        return  # attention alone has none
    made = np.fromfile(folder / workers[0].name, np.float32)
    change = np.linalg.norm(made - np.fromfile(folder / "weights", np.float32))
    for worker in workers[1:]:
        error = float(np.linalg.norm(np.fromfile(folder / worker.name, np.float32) - made) / change)
        if not error <= WEIGHTS_TOLERANCE:
            raise PeerError(
                f"weights after {STEPS_CHECKED} updates must agree to {WEIGHTS_TOLERANCE:.0e} of their change; got "
                f"{error:.1e} between {worker.name} and {workers[0].name}; nothing was timed"
            )
