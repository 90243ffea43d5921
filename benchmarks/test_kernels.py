"""Every kernel against its twin, at its realistic sizes: pytest benchmarks/test_kernels.py -k attention"""

from collections.abc import Callable

import pytest

from fastllm.bench import Benchmark, kernel_benchmark
from fastllm.kernels.cases import CASES

SIZES = [pytest.param((case, label), id=f"{name}-{label}") for name, case in CASES.items() for label in case.realistic]


@pytest.fixture(scope="module", params=SIZES)
def checked(request: pytest.FixtureRequest) -> Benchmark:
    work = kernel_benchmark(*request.param)
    work.check()
    return work


@pytest.mark.parametrize("contender", ["numba", "numpy"])
def test_kernel(race: Callable, checked: Benchmark, contender: str) -> None:
    race(checked, contender)
