"""How close the kernels come to what the machine can do, and how cost grows.

    python benchmarks/limits.py --json limits.json [--rounds 15] [--only products ...]

    products   matrix products, as a share of the multiply-add peak that is measured in the same rounds
    threads    a training step of nanoGPT char on one thread and on all
    decode     one-token steps of a 110-million-parameter model, as a share of the memory's bandwidth; a prompt of
               128 tokens, as a share of the peak
    sequences  time of a step against the number of sequences
    context    time and peak memory of a step against the length of one sequence, up to 16,384 tokens
    start      from an empty kernel cache, and from a full one, to the end of the first training step; imports

docs/performance.md is made of it by make_performance_page.py. All of it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastllm import Model, kernels, preset
from fastllm.atomic import write_json
from fastllm.bench import describe_machine
from fastllm.kernels.jit import get_num_threads
from fastllm.machine import usable_cores
from fastllm.memory import aligned
from fastllm.peers.cases import TrainingCase, cases
from fastllm.peers.generation_race import random_config
from fastllm.peers.race import Worker, threads_of_processes
from fastllm.peers.worker import Probe

Record = dict[str, Any]

PRODUCTS = [(1024, 768, 3072), (80, 128, 384)]  # rows, inputs, outputs
SEQUENCES = [8, 16, 32, 64, 128, 256, 512]
CONTEXTS = [1024, 2048, 4096, 8192, 16384]
BLOCK_SECONDS = 0.05

FIRST_STEP = """
from fastllm.peers.cases import cases
from fastllm.peers.worker import FastllmTraining
FastllmTraining(cases()["nanoGPT CPU"][0]).step()
"""


def products(rounds: int) -> list[Record]:
    """The three products of a linear layer: forward, by the input, by the weight."""
    scratch, no_matrix, no_row = kernels.matmul_scratch(), np.empty((0, 0), np.float32), np.empty(0, np.float32)
    probe = Probe()
    records = []
    for rows, inputs, outputs in PRODUCTS:
        x, weight, dout = (random(*shape) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        out, dx, dweight = (aligned(array.shape, np.float32) for array in (dout, x, weight))
        work: dict[str, Callable[[], object]] = {
            "forward": lambda: kernels.linear_forward(out, x, weight, no_row, no_matrix, scratch),  # noqa: B023
            "by input": lambda: kernels.matmul(dx, dout, weight, False, False, False, scratch),  # noqa: B023
            "by weight": lambda: kernels.matmul(dweight, dout, x, True, False, False, scratch),  # noqa: B023
        }
        flops = 2 * rows * inputs * outputs
        peaks: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(rounds):
            peaks.append(probe.limits()["gflops"])
            for name, call in work.items():
                times[name].append(seconds(call))
        for name, measured in times.items():
            gflops = flops / statistics.median(measured) / 1e9
            records.append(
                {
                    "size": f"{rows}x{inputs}x{outputs}",
                    "product": name,
                    "threads": len(scratch),
                    "gflops": gflops,
                    "share": gflops / statistics.median(peaks),
                }
            )
    return records


def threads(rounds: int) -> list[Record]:
    """nanoGPT char on one thread, and on all: their turns alternate."""
    case, _ = cases()["nanoGPT char"]
    counts = [1, usable_cores()]
    workers = []
    for count in counts:
        with threads_of_processes(count):
            workers.append(Worker("fastllm", case))
            workers[-1]("steps", 1)
    measured: list[list[float]] = [[] for _ in workers]
    for _ in range(max(3, rounds // 3)):
        for worker, times in zip(workers, measured, strict=True):
            times.append(worker("steps", 1)[0])
    for worker in workers:
        worker.close()
    medians = (1e3 * statistics.median(times) for times in measured)
    return [{"threads": count, "ms": ms} for count, ms in zip(counts, medians, strict=True)]


def decode(rounds: int) -> Record:
    """110 million parameters in float32: every matrix is read once a token.

    What memory gives differs from place to place: its bandwidth is measured on the parameters themselves.
    """
    config = random_config()
    model, probe = Model(config), Probe()
    size = model.parameters.flat.size
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, 128)
    cache = model.new_cache()
    embedding, pairs = config.vocab_size * config.width, 128 * 129 // 2
    flops = 2 * (size - embedding) * 128 + 2 * embedding + 4 * pairs * config.layers * config.width
    steps: list[float] = []
    prompts: list[float] = []
    limits: list[dict[str, float]] = []
    model.prefill(prompt, None, cache)
    for _ in range(rounds):
        limits.append(probe.limits(model.parameters.flat))
        cache.release(0)
        began = time.perf_counter()
        model.prefill(prompt, None, cache)
        prompts.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(10):
            model.decode(np.array([1]), cache)
        steps.append((time.perf_counter() - began) / 10)
    step, whole = statistics.median(steps), statistics.median(prompts)
    bandwidth, peak = (statistics.median(limit[name] for limit in limits) for name in ("read_gbytes_per_s", "gflops"))
    return {
        "parameters": size,
        "tokens_per_s": 1 / step,
        "gbytes_per_s": size * 4 / step / 1e9,
        "share_of_bandwidth": size * 4 / step / 1e9 / bandwidth,
        "prompt_tokens_per_s": 128 / whole,
        "share_of_peak": flops / whole / 1e9 / peak,
    }


def sequences(rounds: int) -> list[Record]:
    """nanoGPT CPU's model, sequences of 64 tokens."""
    case, _ = cases()["nanoGPT CPU"]
    return [grow(TrainingCase(case.config, [64] * count), rounds) | {"sequences": count} for count in SEQUENCES]


def context(rounds: int) -> list[Record]:
    """One sequence, ever longer, through two layers of width 256."""
    config = preset("gpt2", vocab_size=65, width=256, hidden=1024, layers=2, heads=4, context=max(CONTEXTS))
    return [grow(TrainingCase(config, [length]), rounds) | {"tokens": length} for length in CONTEXTS]


def grow(case: TrainingCase, rounds: int) -> Record:
    """Time of a step, in a process of its own, and that process's peak memory."""
    with threads_of_processes(usable_cores()):
        worker = Worker("fastllm", case)
        worker("steps", 2)
        times = [worker("steps", 1)[0] for _ in range(rounds)]
        memory = worker("peak_memory")
        worker.close()
    step = statistics.median(times)
    return {"ms": step * 1e3, "mb": memory / 1e6, "gflop": case.flops / 1e9, "gflops": case.flops / step / 1e9}


def start(rounds: int) -> Record:
    """Whole processes, from the shell's view."""
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory() as folder:
        settings = os.environ | {"NUMBA_CACHE_DIR": folder}
        cold = whole([*python, FIRST_STEP], settings)
        warm = [whole([*python, FIRST_STEP], settings) for _ in range(rounds)]
        numpy = [whole([*python, "import numpy"], settings) for _ in range(rounds)]
        imported = [whole([*python, "import fastllm, fastllm.model"], settings) for _ in range(rounds)]
        lazily = [whole([*python, "import fastllm"], settings) for _ in range(rounds)]
        shown = [whole([sys.executable, "-m", "fastllm", "--help"], settings) for _ in range(rounds)]
    middle = statistics.median
    return {
        "cold_s": cold,
        "warm_s": middle(warm),
        "numpy_s": middle(numpy),
        "import_s": middle(lazily),
        "import_model_s": middle(imported),
        "help_s": middle(shown),
    }


def whole(command: list[str], environment: dict[str, str]) -> float:
    """Seconds from a process's start to its end."""
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds(call: Callable[[], object]) -> float:
    """Of one call, the mean over a block of them; the first, which brings the data back, is not counted."""
    began = time.perf_counter()
    call()
    count = max(1, int(BLOCK_SECONDS / (time.perf_counter() - began)))
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def random(*shape: int) -> np.ndarray:
    array = aligned(shape, np.float32)
    array[...] = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return array


PARTS: dict[str, Callable[[int], Any]] = {
    "products": products,
    "threads": threads,
    "decode": decode,
    "sequences": sequences,
    "context": context,
    "start": start,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    parser.add_argument("--rounds", type=int, default=15, help="of each measurement (default: 15)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="some parts only")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be 1 or more; got {arguments.rounds}; raise it")
    os.environ["OMP_NUM_THREADS"] = str(get_num_threads())  # the probe's threads: as many as the kernels'
    results: Record = {"machine": describe_machine()}
    print(results["machine"])
    for name in arguments.only:
        results[name] = PARTS[name](arguments.rounds)
        rows = results[name] if isinstance(results[name], list) else [results[name]]
        for row in rows:
            figures = ", ".join(
                f"{key} {value if isinstance(value, str) else f'{value:.4g}'}" for key, value in row.items()
            )
            print(f"{name}: {figures}", flush=True)
        if arguments.json:  # again each time: what a long run has shall not be lost
            write_json(arguments.json, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
