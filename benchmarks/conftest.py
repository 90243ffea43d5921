"""Turning a benchmark of fastllm.bench into a test of pytest-benchmark: checked first, then timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastllm.bench import Benchmark, settle

ROUNDS = 10


@pytest.fixture
def race(benchmark: BenchmarkFixture) -> Callable[[Benchmark, str], None]:
    """Time one contender of a checked benchmark; those of the same benchmark stand in one table."""

    def run(work: Benchmark, name: str) -> None:
        contender = next(contender for contender in work.contenders if contender.name == name)
        benchmark.group = work.name
        contender.reset()
        settle()
        benchmark.pedantic(contender.run, rounds=ROUNDS, warmup_rounds=2)

    return run
