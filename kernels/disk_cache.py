"""The cache of compiled kernels on the disk.

Numba keys its disk cache by the file that contains a function, and does not notice when a function called from there
changes in another file. Nor does it notice settings that change the code it makes, except for processor and features.
So kernels are cached in a folder that is named by a digest of all files of this folder and of these settings.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba.core.caching import FunctionCache, IndexDataCacheFile, _CacheLocator
from numba.core.runtime import _nrt_python as runtime
from numba.core.typing import Signature

__all__ = ["FOLDER", "cache_directory", "keep_on_disk", "keeps_kernels"]

FOLDER = Path(__file__).parent
# Numba's settings that machine code depends on, but that its own key leaves out.
SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")


def _sources() -> list[Path]:
    """The files of this folder, or the frozen program that contains them; [] if only .pyc files are installed."""
    frozen = [Path(sys.executable)] if getattr(sys, "frozen", False) else []
    return sorted(FOLDER.glob("*.py")) or frozen


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256(repr([getattr(numba.config, name, 0) or 0 for name in SETTINGS]).encode())
    for path in paths:
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


def _find_cache() -> tuple[Path | None, bool]:
    """The folder for compiled kernels, created if need be, and whether it is writable.

    A read-only folder will do if it holds something, as in a container's image. Otherwise the folder is None, with a
    warning.
    """
    folder, sources, fix = None, _sources(), "set NUMBA_CACHE_DIR to a writable folder"
    try:
        if not sources:
            fix = "install fastllm with them"
            raise FileNotFoundError("no sources tell versions apart")
        # Absolute, so that it remains the same when the process changes its working directory.
        folder = _user_cache().absolute() / "fastllm" / f"kernels-{_digest(sources)}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # Path.home() raises RuntimeError without a home
        with suppress(OSError):
            if folder is not None and any(folder.iterdir()):
                return folder, False
        warnings.warn(
            f"compiled kernels can't be kept on disk ({error}), so every process compiles them anew; {fix}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, False
    return folder, True


_CACHE, _IS_WRITABLE = _find_cache()
_keeps_all = _IS_WRITABLE  # until a kernel can't be written, as on a full disk


def cache_directory() -> Path | None:
    """The folder of this version's compiled kernels, or None if there is none and it can't be created."""
    return _CACHE


def keeps_kernels() -> bool:
    """Whether compiled kernels are kept on disk: not if the folder is read-only, or writing failed before."""
    return _keeps_all


class _DamagedError(Exception):
    """A file of the cache is not as it was written."""


class _CacheFiles(IndexDataCacheFile):
    """The machine code of one function on the disk: a file for each signature, and an index of these files.

    Numba numbers the files in order. If two processes compiled a function for different arguments at the same time,
    both files would get the same number, and one's entry in the index would silently lead to the other's machine code.
    So here a file is named by a digest of its key, and written before the index names it. If two processes write the
    index at the same time, one's entry may be lost: it is then compiled again.

    Each file ends in a checksum, because the errors pickle raises do not tell a damaged file from a lack of memory, and
    a flipped bit in machine code raises none.
    """

    def save(self, key: Hashable, data: Any) -> None:
        whole = self._version, self._source_stamp, key
        number = hashlib.sha256(repr(whole).encode()).hexdigest()[:16]
        name = self._data_name(int(number, 16))
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(path) as file:
            file.write(content.getvalue() + _checksum(content.getvalue()))

    def _load_index(self) -> dict[Hashable, str]:
        with suppress(FileNotFoundError):
            _checked(self._index_path)
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        return pickle.loads(_checked(self._data_path(name)))


def _checksum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def _checked(path: str) -> memoryview:
    """The content of a file, without its checksum. Raises _DamagedError if they disagree."""
    content = memoryview(Path(path).read_bytes())
    if _checksum(content[:-4]) != content[-4:]:
        raise _DamagedError(path)
    return content[:-4]


class _Cache(FunctionCache):
    """Numba's disk cache, but reading from it does not initialise the compiler.

    Numba initialises it before reading, so a program whose kernels are all on the disk would pay 34 MB and a fifth of a
    second for a compiler that it never uses. Machine code needs only the functions of Numba's runtime. If a kernel is
    not on the disk, the compiler initialises itself.
    """

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        # Older versions of Numba use the file's modification time, of which a container's image may keep seconds only.
        is_in_digest = function.__module__.startswith(f"{__package__}.")
        stamp = _CACHE.name if _CACHE and is_in_digest else self._impl.locator.get_source_stamp()
        self._cache_file = _CacheFiles(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Signature, target_context: Any) -> Any:
        _add_runtime()
        with self._guard_against_spurious_io_errors():
            try:
                return self._load_overload(sig, target_context)
            except OSError as error:
                _warn(f"a compiled kernel on disk can't be read ({error}) and is compiled anew")
                return None
            except _DamagedError as error:
                _warn(f"a compiled kernel on disk is damaged ({error}) and is compiled anew")
                with suppress(OSError):
                    self._cache_file.flush()
                return None

    def save_overload(self, sig: Signature, data: Any) -> None:
        if not _IS_WRITABLE:
            _warn_of_folder()
            return
        try:
            super().save_overload(sig, data)
        except (OSError, _DamagedError) as error:
            _note_failure(error)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _note_failure(error: Exception) -> None:
    """Note that a kernel could not be written to the disk. Only the first time warns."""
    global _keeps_all
    is_first, _keeps_all = _keeps_all, False
    if is_first:
        _warn(f"compiled kernels could not be kept on disk ({error}), so the next process compiles them anew; "
              "see `fastllm doctor`")  # fmt: skip


@cache
def _warn_of_folder() -> None:
    """Warn that the folder is read-only: once per process, thanks to the cache."""
    _warn(f"kernels that aren't in {_CACHE} are compiled anew by each process, as it can only be read; "
          "see `fastllm doctor`")  # fmt: skip


@cache
def _add_runtime() -> None:
    """Give LLVM's linker the addresses of Numba's runtime functions, by the names that compiled kernels use."""
    for name, address in runtime.c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def keep_on_disk(compiled: Any, function: Callable) -> None:
    """Make a compiled function use the disk cache, if there is a folder."""
    if _CACHE is not None:
        with _cache_folder():
            compiled._cache = _Cache(function)


@contextmanager
def _cache_folder() -> Iterator[None]:
    """Within the block, Numba's caches use our folder, also if it is read-only, which Numba would refuse.

    Afterwards other users of Numba in this process have their own again.
    """
    before, ensure = numba.config.CACHE_DIR, _CacheLocator.ensure_cache_path
    numba.config.CACHE_DIR = str(_CACHE or "")
    if not _IS_WRITABLE:
        _CacheLocator.ensure_cache_path = lambda locator: None
    try:
        yield
    finally:
        numba.config.CACHE_DIR, _CacheLocator.ensure_cache_path = before, ensure
