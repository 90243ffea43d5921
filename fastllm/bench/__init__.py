"""Benchmarks: contenders that do the same work are checked against each other, then timed in turns."""

from .kernel import check_kernel, kernel_benchmark
from .report import Record, describe_machine, failure, records, write_json
from .timing import Benchmark, CheckError, Contender, Timing, measure, settle
from .training_step import TRAINING_STEPS, check_gradients, training_benchmark

__all__ = [
    "TRAINING_STEPS",
    "Benchmark",
    "CheckError",
    "Contender",
    "Record",
    "Timing",
    "check_gradients",
    "check_kernel",
    "describe_machine",
    "failure",
    "kernel_benchmark",
    "measure",
    "records",
    "settle",
    "training_benchmark",
    "write_json",
]
