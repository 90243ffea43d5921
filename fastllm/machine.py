"""This machine's processor, cores and memory, asked from the operating system without another package."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

from .errors import ConfigError

# These set the number of threads of Numba and of NumPy's BLAS, which read them once, when they are loaded.
THREAD_VARIABLES = (
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def check_compiler() -> None:
    """Raise ConfigError if the environment switches the compiler off: the kernels only run compiled."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise ConfigError(
            "backend 'numba' must compile; got NUMBA_DISABLE_JIT, which forbids it; unset that, or use 'numpy'"
        )


def describe(threads: int, *packages: str) -> str:
    """What times depend on, in one line: processor, threads, and versions of Python and of the installed `packages`."""
    versions = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join([cpu_name(), f"threads {threads}", f"Python {platform.python_version()}", *versions])


def cpu_name() -> str:
    """The processor's name as its maker gives it, on Linux with family and model; else its architecture.

    In virtual machines the name is often just "AMD EPYC", for all five generations: family and model tell them apart.
    """
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    found = dict(reversed(_proc("/proc/cpuinfo")))  # the first core's
    numbers = [f"{word} {found[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in found]
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(numbers)})" if numbers else name


def logical_cores() -> int:
    """Number of logical cores that the system shows."""
    return os.cpu_count() or 1


def physical_cores() -> int | None:
    """Number of cores, not counting hyper-threads; None where the system doesn't tell."""
    if sys.platform == "darwin":
        count = _sysctl("hw.physicalcpu")
        return int(count) if count else None
    cores = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({_read(path) for path in cores} - {""}) or None


def usable_cores() -> int:
    """Number of logical cores this process may use, by its affinity and its container's CPU limit, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical_cores()
    groups = Path("/sys/fs/cgroup")
    quota, _, period = _read(groups / "cpu.max").partition(" ")
    if not quota:  # version 1
        quota, period = (_read(groups / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    limited = quota.isdigit() and period.isdigit() and int(period) > 0
    return min(affinity, max(1, math.ceil(int(quota) / int(period)))) if limited else affinity


def memory() -> tuple[int | None, int | None]:
    """Bytes of main memory, total and available; None where the system doesn't tell."""
    sizes = {key: int(value.split()[0]) * 1024 for key, value in _proc("/proc/meminfo")}
    if sizes:
        return sizes.get("MemTotal"), sizes.get("MemAvailable")
    total = _sysctl("hw.memsize") if sys.platform == "darwin" else ""
    return int(total) if total else None, None


def _proc(path: str) -> list[tuple[str, str]]:
    """The `key: value` lines of a file in Linux's /proc; none elsewhere."""
    lines = (line.partition(":") for line in _read(Path(path)).splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in lines if colon and value.strip()]


def _read(path: Path) -> str:
    """A small system file; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        result = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip()
