"""Fuzzing of every kernel of `fastllm.kernels.cases.CASES` against its twin in float64. No test: run it by hand.

    NUMBA_NUM_THREADS=8 python tests/fuzz/fuzz_kernels.py --seconds 600 --seed 1 --only attention_backward matmul

Sizes are random, near the borders at which the kernels change their ways more often than not. Each case runs three
times. Every array of a run is a copy that ends where an unreadable page begins, begins where one ends, or lies between
margins of a known byte; scratch is full of NaN, infinities or huge numbers, for another number of threads than run, and
in the last run the result may be written over an input. Reported are: results off by more than the tolerance, bits that
differ between the runs (or, in decoding, without the other rows), changed inputs and margins, exceptions and signals.
The cases run in a child process: if it dies, the case it was at is reported, and another goes on with the next.

A report is a line with the arguments that repeat the case, its size and the run, and a line that says what was wrong:

    --seed 1 --only attention_backward --case 12: lengths=(513,), heads=2, ... | parts=3, threads=2, ...
        dqkv is off at 4096 of 98496, the first is [256, 0], the worst by 3e+04 times what is allowed

The exit status is 1 if there was any. Other CPU features have other borders. Try them, too: NUMBA_CPU_NAME=generic for
vectors of 4 numbers, NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+sse2,+avx,+avx2,+fma for 8. Linux and macOS only.
"""

import argparse
import itertools
import math
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from guarded import PLACES, margins_changed, place
from kernel_sizes import SIZES, Draw, Size

from fastllm import kernels
from fastllm.config import STEP_ROWS
from fastllm.kernels import reference
from fastllm.kernels.cases import CASES, SCRATCH_ARGUMENTS, with_scratch
from fastllm.kernels.llvm import LANES

MATMUL: Any = sys.modules["fastllm.kernels.matmul"]  # kernels.matmul is the function
OFTEN = ("matmul", "linear", "lora", "packed", "attention")  # beginnings of the names of kernels with the most ways
# The results that may be written over an input. Not softmax_forward and gelu_backward, whose bits
# may then differ.
IN_PLACE = {
    "linear_forward": [("out", "residual")], "linear_backward": [("dx", "residual")],
    "packed_backward": [("dx", "residual")], "layernorm_backward": [("dx", "dresidual")],
    "rms_norm_backward": [("dx", "dresidual")], "add": [("out", "a"), ("out", "b")],
    "cross_entropy_forward_backward": [("dlogits", "logits")], "dropout_forward": [("out", "x")],
    "dropout_backward": [("dx", "dout")], "relu_backward": [("dx", "dout")], "gelu_tanh_backward": [("dx", "dout")],
    "silu_backward": [("dx", "dout")],
}  # fmt: skip
# Kernels that give a row of a decoding step the same bits whatever its other rows are, and what has a row for each.
ROWS_ALONE = {
    "packed_rows_forward": ("out", "x", "residual"), "linear_forward": ("out", "x", "residual"),
    "attention_decode": ("out", "qkv", "slots", "lengths"),
}  # fmt: skip


def each(function: Any, value: Any) -> Any:
    """The function of a value, or of each value of a tuple."""
    return tuple(function(one) for one in value) if isinstance(value, tuple) else function(value)


def widened(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return value.astype(np.float64) if value.dtype == np.float32 else value.copy()


def filled(room: Any, number: float) -> Any:
    if isinstance(room, np.ndarray):
        room = np.full(room.shape, number if room.dtype.kind == "f" else -(1 << 40), room.dtype)
    return room


def scratch_of(arguments: Size, run: Size) -> Any:
    """Scratch for `parts` threads of a machine with this L2 cache, for larger maps and more rows than there are."""
    columns, rows = run["extra"]
    larger = SimpleNamespace(
        matmul_scratch=kernels.matmul_scratch,
        attention_scratch=kernels.attention_scratch,
        packed_scratch=lambda inputs, most: kernels.packed_scratch(inputs + columns, most + rows),
        decode_scratch=lambda most, *heads: kernels.decode_scratch(most + rows, *heads),
    )
    threads, numba.config.NUMBA_NUM_THREADS = numba.config.NUMBA_NUM_THREADS, run["parts"]
    MATMUL.second_cache_size = lambda: run["cache"]
    try:
        return with_scratch(arguments, larger)["scratch"]
    finally:
        numba.config.NUMBA_NUM_THREADS = threads


def call(name: str, inputs: Size, run: Size, rng: np.random.Generator) -> tuple[Size, list[str]]:
    """The results of a call, and what was wrong with it."""
    case, (result, same) = CASES[name], run["in_place"] or ("", "")
    arguments = dict(inputs)
    if "scratch" in arguments:
        arguments["scratch"] = scratch_of(inputs, run)
    placed: Size = {}
    for key, value in arguments.items():
        value = each(partial(filled, number=run["scratch"]), value) if key in SCRATCH_ARGUMENTS else value
        where = str(rng.choice(PLACES)) if run["where"] == "mixed" else run["where"]
        placed[key] = each(partial(place, where=where, rng=rng), value)
    if result:
        placed[result] = placed[same]
    numba.set_num_threads(run["threads"])
    returned = getattr(kernels, name)(*placed.values())
    results = {key: placed[key].copy() for key in (*case.written, *case.updated)}
    if returned is not None:
        results["returned"] = np.array(returned)
    wrong, may_change = [], {*case.written, *case.updated, *SCRATCH_ARGUMENTS, result, same}
    for key, value in placed.items():
        for before, after in zip(*(v if isinstance(v, tuple) else (v,) for v in (arguments[key], value)), strict=True):
            if not isinstance(after, np.ndarray) or after.size == 0:
                continue
            if margins_changed(after):
                wrong.append(f"the memory around {key} was written")
            if key not in may_change and before.tobytes() != after.tobytes():
                wrong.append(f"the input {key} was written")
    return results, wrong


def compare(name: str, size: Size, results: Size, twin: Size) -> list[str]:
    wrong, tolerance = [], 2 * CASES[name].kernel_tolerance(size)
    if name == "packed_rows_forward":  # a typical number is that of all matrices together, whose scales differ much
        tolerance *= 4
    for key, right in twin.items():
        typical = math.sqrt(np.square(right, dtype=np.float64).mean()) if right.size > 1 else 1.0
        if "norm" in name and min(size.get("width", 4), size.get("head_size", 4)) < 4:
            # A few numbers may be nearly 0 or the same: 1 / deviation is then huge, and results the rest of huge ones.
            typical = 1000.0
        allowed = tolerance * (np.abs(right) + typical) if right.dtype.kind == "f" else np.zeros(right.shape)
        off = np.abs(results[key].astype(np.float64) - right)
        bad = ~(off <= allowed)
        if bad.any():
            worst = np.max(np.nan_to_num(off[bad] / np.maximum(allowed[bad], 1e-30), nan=np.inf))
            first = np.argwhere(bad)[0].tolist()
            wrong.append(
                f"{key} is off at {bad.sum()} of {bad.size}, the first is {first}, the worst by {worst:.2g} "
                f"times what is allowed"
            )
    return wrong


def differing(results: Size, others: Size, what: str) -> list[str]:
    return [f"the bits of {key} differ {what}" for key in results if results[key].tobytes() != others[key].tobytes()]


def fuzz(name: str, seed: int, number: int) -> None:
    """Run a case. A line "RUN ..." tells of each call before it begins, lines "WRONG ..." what was wrong with it."""

    def tell(run: Size, wrong: list[str] | None = None) -> None:
        text = " | ".join(", ".join(f"{key}={value}" for key, value in one.items()) for one in (size, run) if one)
        for kind, line in [("WRONG", line) for line in wrong] if wrong is not None else [("RUN", "")]:
            print(f"{kind}\t--seed {seed} --only {name} --case {number}: {text}\t{line}", flush=True)

    rng, case, size = np.random.default_rng((seed, number)), CASES[name], {}
    try:
        size = SIZES[name](Draw(rng))
        tell({})
        inputs = case.build(rng, **size)
        wide = {key: each(widened, value) for key, value in inputs.items()}
        with np.errstate(all="ignore"):
            returned = getattr(reference, name)(*wide.values())
        twin = {key: wide[key] for key in (*case.written, *case.updated)}
        twin |= {} if returned is None else {"returned": np.array(returned)}
        draw, first = Draw(rng), {}
        fixed = {"cache": 1 << draw.one_of(18, 19, 20, 21), "extra": (draw.one_of(0, 37, 512), draw.one_of(0, 3, 31))}
        for repeat in range(3):
            run = {
                "parts": draw.one_of(1, 2, 3, 4, 5, 7, 8, 13, 16),
                "threads": min(draw.one_of(1, 2, 3, 5, 8), numba.config.NUMBA_NUM_THREADS),
                "scratch": draw.one_of(np.nan, np.inf, 3e38),
                "where": draw.one_of(*PLACES, "end", "mixed"),
                "in_place": None,
            } | fixed  # fmt: skip
            if repeat == 2 and name in IN_PLACE:
                result, same = draw.one_of(*IN_PLACE[name])
                run["in_place"] = (result, same) if inputs[same].size else None
            tell(run)
            results, wrong = call(name, inputs, run, rng)
            if not first:
                first = results
                wrong += compare(name, size, results, twin)
            tell(run, wrong + differing(first, results, "from those of the first run"))
        if name in ROWS_ALONE and len(inputs["out"]) <= STEP_ROWS:
            start, stop = sorted(rng.choice(len(inputs["out"]) + 1, 2, replace=False))
            rows = {key: inputs[key][start:stop].copy() for key in ROWS_ALONE[name] if inputs[key].size}
            run = run | {"in_place": None, "rows": f"{start}:{stop}"}
            tell(run)
            results, wrong = call(name, inputs | rows, run, rng)
            alone = differing({"out": first["out"][start:stop]}, results, "from those among other rows")
            tell(run, wrong + alone)
    except Exception:
        tell({}, [traceback.format_exc().replace("\n", " / ")])


def child(options: argparse.Namespace) -> None:
    """Run cases from number --case on until the time is up, at least one."""
    weights = np.array([6.0 if name.startswith(OFTEN) else 1.0 for name in options.only])
    end = time.monotonic() + options.seconds
    for number in itertools.count(options.case):
        name = np.random.default_rng((options.seed, number, 1)).choice(options.only, p=weights / weights.sum())
        fuzz(str(name), options.seed, number)
        if time.monotonic() >= end:
            break


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=sorted(CASES), metavar="NAME")
    parser.add_argument("--case", type=int, help="run only the case of this number")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    end = time.monotonic() + options.seconds
    first = next_case = options.case or 0
    found, report = 0, ""
    while True:
        seconds = 0 if options.case is not None else max(0, end - time.monotonic())
        arguments = ["--seconds", str(seconds), "--seed", str(options.seed), "--case", str(next_case)]
        command = [sys.executable, __file__, "--child", *arguments, "--only", *options.only]
        begun = next_case
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                kind, report, wrong = line.rstrip("\n").split("\t")
                next_case = int(report.split(" --case ")[1].split(":")[0]) + 1
                if kind == "WRONG":
                    found += 1
                    print(f"{report}\n    {wrong}", flush=True)
        status = process.returncode
        if status != 0:
            found += 1
            end_of_it = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            print(f"{report}\n    the process ended with {end_of_it}", flush=True)
        if status == 0 or next_case == begun or options.case is not None or time.monotonic() >= end:
            break
    print(f"{next_case - first} cases with vectors of {LANES} numbers, {found} reports")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
