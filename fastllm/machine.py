"""What this machine is: processor, cores, memory. From the operating system, without another package."""

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

# What sets the threads of Numba and of NumPy's BLAS, read once, when these are loaded.
THREAD_VARIABLES = (
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def check_compiler() -> None:
    """Raise ConfigError where the environment switches the compiler off: kernels run only when compiled."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise ConfigError(
            "backend 'numba' must compile; got NUMBA_DISABLE_JIT, which forbids it; unset that, or use 'numpy'"
        )


def describe(threads: int, *packages: str) -> str:
    """What times depend on, in one line: processor, threads, versions of Python and of what is installed of these."""
    versions = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join([cpu_name(), f"threads {threads}", f"Python {platform.python_version()}", *versions])


def cpu_name() -> str:
    """The processor's name as its maker gives it, on Linux with its family and model; or its architecture.

    Virtual machines tell no more than "AMD EPYC", of any of its five generations.
    """
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    found = dict(reversed(_proc("/proc/cpuinfo")))  # the first core's
    numbers = [f"{word} {found[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in found]
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(numbers)})" if numbers else name


def logical_cores() -> int:
    """Cores that the system shows."""
    return os.cpu_count() or 1


def physical_cores() -> int | None:
    """Cores without their hyper-threads; None where the system doesn't tell."""
    if sys.platform == "darwin":
        count = _sysctl("hw.physicalcpu")
        return int(count) if count else None
    cores = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({_read(path) for path in cores} - {""}) or None


def usable_cores() -> int:
    """Logical cores this process may use: its affinity, and its container's limit of CPU time, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical_cores()
    groups = Path("/sys/fs/cgroup")
    quota, _, period = _read(groups / "cpu.max").partition(" ")
    if not quota:  # version 1
        quota, period = (_read(groups / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    limited = quota.isdigit() and period.isdigit() and int(period) > 0
    return min(affinity, max(1, math.ceil(int(quota) / int(period)))) if limited else affinity


def memory() -> tuple[int | None, int | None]:
    """Bytes of main memory, in all and available; None for what the system doesn't tell."""
    sizes = {key: int(value.split()[0]) * 1024 for key, value in _proc("/proc/meminfo")}
    if sizes:
        return sizes.get("MemTotal"), sizes.get("MemAvailable")
    total = _sysctl("hw.memsize") if sys.platform == "darwin" else ""
    return int(total) if total else None, None


def _proc(path: str) -> list[tuple[str, str]]:
    """Lines `key: value` of a file of Linux's; none elsewhere."""
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
