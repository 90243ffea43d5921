"""Time kernels and training steps against their NumPy twins; training steps against PyTorch; generation against
llama.cpp and transformers.

Each kernel is first compared with its twin in float64; one that differs is reported as failed and not timed, and the
exit status is 1. Contenders take turns in one process. ratio is the twin's time / the kernel's: below 1, the kernel
loses. GB/s counts only unavoidable memory traffic. The whole run takes minutes.

`fastllm bench peers` races whole training steps, and attention by itself, against PyTorch, eager and compiled, each
in its own process, with the same weights, batch and number of threads. A case whose losses and gradients differ is not
timed. ratio is the faster PyTorch's time / fastllm's; peak is fastllm's share of the machine's peak rate of
floating-point operations, measured in the same rounds. It needs the extra `peers`, and a C++ compiler for
torch.compile.

`fastllm bench generate [MODEL]` races decoding and prompt processing against llama-cpp-python, on GGUF files of MODEL
in F32, F16, Q8_0 and Q4_0 that fastllm writes, and against transformers in float32, if these are installed. MODEL is
anything that fastllm opens; without it, a random Llama-style model of 110 million parameters is used. Each contender
runs in its own process, and they take turns; if logits differ by more than the format explains, nothing is timed. "8 at
once" is fastllm alone: total tokens per second for 8 texts side by side, and the factor over one text. "beyond" is peak
resident memory minus the file and the KV cache.

examples:
  fastllm bench 'attention_*' training_step --json times.json
  fastllm bench peers --json peers.json
  fastllm bench peers 'tiny*' --quick
  fastllm bench generate --threads 2 --json generate.json
  fastllm bench generate SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic import is_replaced
from ..errors import ConfigError
from ..machine import THREAD_VARIABLES, check_compiler, usable_cores
from .output_option import check_output

if TYPE_CHECKING:
    from ..bench import Benchmark, Record

TRAINING_STEP, PEERS, GENERATE = "training_step", "peers", "generate"
FULL = (15, 0.02)  # rounds, and seconds of a block
QUICK = (3, 0.002)

ROW = "{:<44} {:>10} {:>19} {:>10} {:>8} {:>8} {:>7}"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="kernels or training_step; or peers, followed by cases; or generate, followed by a model; * is a wildcard "
        "(default: all kernels and training_step)",
    )
    parser.set_defaults(goes_on="names")
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    parser.add_argument("--quick", action="store_true", help="one size of each, few rounds: to see that it works")
    parser.add_argument("--cache-dtype", choices=("float32", "float16"), help="for generate: number type of fastllm's "
                        "KV cache (default: float32; llama.cpp uses float16)")  # fmt: skip
    parser.add_argument("--threads", type=_positive, metavar="N", help="for kernels and BLAS (default: all cores)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0; got {text!r}; leave it out for all cores")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        check_output("--json", arguments.json)
    check_compiler()
    if (arguments.threads or 1) > usable_cores():
        print(f"fastllm: note: {arguments.threads} threads on {usable_cores()} cores get into each other's way, so "
              "the times mean little", file=sys.stderr)  # fmt: skip
    if arguments.names[:1] == [GENERATE]:
        return _generate(arguments)
    if arguments.cache_dtype is not None:
        raise ConfigError("--cache-dtype goes with `fastllm bench generate`; got it without; drop it")
    if arguments.names[:1] == [PEERS]:
        return _race(arguments)
    if arguments.threads is not None:
        _set_threads(arguments.threads)
    _bind_threads()
    from .. import bench

    benchmarks = _benchmarks(arguments.names, arguments.quick)
    print(bench.describe_machine())
    print(ROW.format("case", "kernel ms", "p20 - p80", "twin ms", "ratio", "GFLOP/s", "GB/s"))
    results: list[Record] = []
    for benchmark in benchmarks:
        try:
            pair = bench.records(benchmark, bench.measure(benchmark, *(QUICK if arguments.quick else FULL)))
        except bench.CheckError as error:
            pair = bench.failure(benchmark, error)
        print(_row(*pair), flush=True)
        results += pair
        if _is_rewritten(arguments.json):
            bench.write_json(arguments.json, results)
    print(*_summary(results), sep="\n")
    if arguments.json and not _is_rewritten(arguments.json):
        bench.write_json(arguments.json, results)
    return 1 if any(record.error for record in results) else 0


def _race(arguments: argparse.Namespace) -> int:
    from ..peers import report
    from ..peers.cases import cases
    from ..peers.race import PeerError, race

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("bench peers needs PyTorch; got none installed; pip install 'fastllm-numba[peers]'")
    threads = arguments.threads or usable_cores()
    table = cases()
    patterns = arguments.names[1:] or ["*"]
    for pattern in patterns:
        if not fnmatch.filter(table, pattern):
            raise ConfigError(
                f"a case of peers must be one of {', '.join(map(repr, table))}; got {pattern!r}; * matches any text"
            )
    rounds = QUICK[0] if arguments.quick else FULL[0]
    print(report.describe(threads))
    print(report.HEAD)
    races, failures = [], {}
    for name, (case, target) in table.items():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        try:
            races.append(race(name, case, target, threads, rounds))
            print(report.row(races[-1]), flush=True)
        except PeerError as error:
            failures[name] = str(error)
            print(f"{name:<20} FAILED: {error}", flush=True)
        if _is_rewritten(arguments.json):
            report.write_json(arguments.json, races, failures, threads)
    if arguments.json and not _is_rewritten(arguments.json):
        report.write_json(arguments.json, races, failures, threads)
    return 1 if failures else 0


def _generate(arguments: argparse.Namespace) -> int:
    from ..machine import describe
    from ..parameters import count_parameters
    from ..peers import generation_report as report
    from ..peers.generation_race import Outcome, races, write_base

    if len(arguments.names) > 2:
        raise ConfigError(f"bench generate takes one model; got {', '.join(arguments.names[1:])}; name one, or none")
    model = arguments.names[1] if len(arguments.names) == 2 else None
    threads = arguments.threads or usable_cores()
    outcomes: list[Outcome] = []
    failed: dict[str, str] = {}
    left_out: list[str] = []

    def note(line: str) -> None:
        left_out.append(line)
        print(line, flush=True)

    print(describe(threads, *report.VERSIONS))
    with tempfile.TemporaryDirectory(prefix="fastllm-generate-") as name:
        config = write_base(model, Path(name))
        size = count_parameters(config)
        said = {"name": model or "random, Llama-style", "parameters": size, "config": config.to_dict()}
        print(f"{said['name']}: {size / 1e6:.1f} million parameters")
        print(report.HEAD, flush=True)
        dtype = arguments.cache_dtype or "float32"
        for found in races(Path(name), threads, arguments.quick, dtype, failed, note):
            outcomes += found
            print(*map(report.row, found), sep="\n", flush=True)
            if _is_rewritten(arguments.json):
                report.write_json(arguments.json, outcomes, said, threads, failed, left_out)
    print(*report.ratios(outcomes), *(f"{kind} FAILED: {error}" for kind, error in failed.items()), sep="\n")
    if arguments.json:
        report.write_json(arguments.json, outcomes, said, threads, failed, left_out)
    return 1 if failed else 0


def _is_rewritten(path: str | None) -> bool:
    """Whether results are written after each benchmark, so that a run of minutes loses none. A pipe gets them once."""
    return path is not None and is_replaced(Path(path))


def _set_threads(count: int) -> None:
    """Set the number of threads of Numba and BLAS, which read it from the environment when they are loaded."""
    loaded = [name for name in ("numpy", "numba") if name in sys.modules]
    if loaded:
        raise ConfigError(f"--threads must come before numpy and numba are loaded; got {loaded}; use a new process")
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))


def _bind_threads() -> None:
    """Bind each of Numba's threads to a core, if Numba is not loaded yet.

    Otherwise BLAS, which takes turns with them here, can cause two of them to be moved to one core. There they stay,
    and each call waits a millisecond for the other thread's time slice to end.
    """
    if "numba" not in sys.modules:
        os.environ.setdefault("OMP_PROC_BIND", "true")


def _benchmarks(patterns: list[str], quick: bool) -> Iterator[Benchmark]:
    """The benchmarks of these names, each made only when its turn comes: together they need much memory."""
    from .. import bench
    from ..kernels.cases import CASES

    labels = {name: list(case.realistic) for name, case in CASES.items()}
    labels[TRAINING_STEP] = list(bench.TRAINING_STEPS)
    for pattern in patterns:
        if not fnmatch.filter(labels, pattern):
            near = difflib.get_close_matches(pattern, labels, n=1, cutoff=0.4)
            fix = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(labels)}"
            raise ConfigError(f"NAME must be a kernel or {TRAINING_STEP}; got {pattern!r}; {fix}")
    chosen = [name for name in labels if any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ["*"])]

    def make(name: str, label: str) -> Benchmark:
        return bench.training_benchmark(label) if name == TRAINING_STEP else bench.kernel_benchmark(CASES[name], label)

    return (make(name, label) for name in chosen for label in labels[name][: 1 if quick else None])


def _row(kernel: Record, twin: Record) -> str:
    from ..figures import three_digits

    if kernel.error:
        return f"{kernel.case:<44} FAILED: {kernel.error}"
    return ROW.format(
        kernel.case,
        three_digits(kernel.median_ms),
        f"{three_digits(kernel.p20_ms)} - {three_digits(kernel.p80_ms)}",
        three_digits(twin.median_ms),
        f"{kernel.ratio:.2f}x",
        three_digits(kernel.gflops),
        three_digits(kernel.gbytes_per_s),
    )


def _summary(results: list[Record]) -> list[str]:
    kernels = [record for record in results if record.contender == "numba"]
    first = sum(record.first_ms or 0.0 for record in kernels) / 1e3
    lost = [record.case for record in kernels if record.ratio is not None and record.ratio < 1]
    failed = [record.case for record in kernels if record.error]
    return [
        f"first calls, which compile the kernels or load them from the cache: {first:.1f} s, not timed above",
        f"slower than the twin: {', '.join(lost) or 'none'}",
        f"failed the check: {', '.join(failed) or 'none'}",
    ]
