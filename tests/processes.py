"""Commands in processes of their own, and the scripts in benchmarks/."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def script(name: str) -> Callable[[list[str]], int]:
    return runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))["main"]


def fastllm_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, for settings that are read when it starts."""
    settings = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **environment}
    return subprocess.run(
        [sys.executable, "-m", "fastllm", *arguments],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
