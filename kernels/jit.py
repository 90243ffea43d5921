"""The only file that names numba.njit: compiler flags, disk cache, chunks of parallel work.

Flags. error_model="numpy" spares a test before every division. Of LLVM's fast-math flags all are on but
`nnan` and `ninf`: with those, the compiler deletes tests for NaN and infinity. nogil lets another thread run
Python (a data loader, a progress bar) meanwhile.

Cache. Numba keys its disk cache by the file a function stands in and does not see that a function it calls
has changed in another file. So all kernels are cached in a folder named by a digest of every file here.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numba
from numba import prange

__all__ = ["cache_directory", "chunk_count", "inline", "kernel", "prange"]

SAFE_MATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
FOLDER = Path(__file__).resolve().parent

# A parallel region costs about 3.5 us to start (OpenMP layer), the time of a few thousand simple operations.
ELEMENTS_PER_CHUNK = 8192
MAX_CHUNKS = 64


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _user_cache() -> Path:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _writable_cache() -> Path | None:
    """The folder for compiled kernels, created; None where nothing can be written (said in a warning)."""
    try:
        folder = _user_cache() / "fastllm" / f"kernels-{_digest()}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # Path.home() raises RuntimeError without a home
        warnings.warn(
            f"compiled kernels can't be kept on disk ({error}), so every process compiles them anew; "
            "set NUMBA_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder


_CACHE = _writable_cache()


def cache_directory() -> Path | None:
    """The folder that holds this version's compiled kernels, or None where no folder is writable."""
    return _CACHE


def kernel(function: Callable | None = None, *, parallel: bool = False) -> Callable:
    """Compile on first call, with the flags of this library; `parallel` makes prange loops run on all threads."""
    if function is None:
        return lambda f: kernel(f, parallel=parallel)
    before = numba.config.CACHE_DIR
    # Numba reads the folder when it decorates. Set for that moment only: other users of Numba in this
    # process keep theirs.
    numba.config.CACHE_DIR = str(_CACHE or "")
    try:
        return numba.njit(
            function,
            parallel=parallel,
            cache=_CACHE is not None,
            error_model="numpy",
            nogil=True,
            fastmath=SAFE_MATH,
        )
    finally:
        numba.config.CACHE_DIR = before


def inline(function: Callable) -> Callable:
    """A scalar function for use inside kernels: compiled with the same flags, inlined by LLVM, not cached alone."""
    return numba.njit(function, error_model="numpy", nogil=True, fastmath=SAFE_MATH)


@inline
def chunk_count(elements):
    """How many parallel chunks a loop over so many elements is cut into.

    It depends on the size alone, never on the threads, so partial sums are the same on any machine.
    """
    return min(MAX_CHUNKS, max(1, elements // ELEMENTS_PER_CHUNK))
