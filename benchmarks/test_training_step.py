"""Whole training steps on the kernels against the same on the twins."""

from collections.abc import Callable

import pytest

from fastllm.bench import TRAINING_STEPS, Benchmark, training_benchmark


@pytest.fixture(scope="module", params=TRAINING_STEPS)
def checked(request: pytest.FixtureRequest) -> Benchmark:
    work = training_benchmark(request.param)
    work.check()
    return work


@pytest.mark.parametrize("contender", ["numba", "numpy"])
def test_training_step(race: Callable, checked: Benchmark, contender: str) -> None:
    race(checked, contender)
