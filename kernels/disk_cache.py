"""Machine code of kernels on the disk.

Numba keys its disk cache by the file a function stands in and does not see that a function it calls has changed in
another file. So all kernels are cached in a folder named by a digest of every file here.
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


def _sources() -> list[Path]:
    """All files here, or the frozen program that holds them; nothing where only .pyc files are installed."""
    frozen = [Path(sys.executable)] if getattr(sys, "frozen", False) else []
    return sorted(FOLDER.glob("*.py")) or frozen


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
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
    """The folder for compiled kernels, made if need be, and whether it can be written to.

    One that can only be read serves as long as it holds something, as in a container's image: None elsewhere, which is
    said in a warning.
    """
    folder, sources, fix = None, _sources(), "set NUMBA_CACHE_DIR to a writable folder"
    try:
        if not sources:
            fix = "install fastllm with them"
            raise FileNotFoundError("no sources tell versions apart")
        # Whoever changes to another folder keeps this one.
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
_keeps_all = _IS_WRITABLE  # until a kernel can't be kept, as on a full disk


def cache_directory() -> Path | None:
    """The folder that holds this version's compiled kernels, or None where there is none and none can be made."""
    return _CACHE


def keeps_kernels() -> bool:
    """Whether what is compiled is kept on disk: the folder may be one that can only be read, or its disk full."""
    return _keeps_all


class _DamagedError(Exception):
    """A file of the cache is not what was written."""


class _CacheFiles(IndexDataCacheFile):
    """Machine code of one function on the disk: a file for each signature, and an index.

    Numba counts the files. Two processes that compile a function for different arguments at once would give both the
    same number, and what the index then names would be the other's machine code: nothing tells. So a file is named
    after what it is for. And it is there before the index names it. Of two that write the index at once, one's entry
    may be lost: then that is compiled again.

    Each file ends in a checksum. What pickle raises does not tell a damaged file from a want of memory, and a wrong bit
    of machine code raises nothing.
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
    """What a file holds before its checksum. Raises _DamagedError."""
    content = memoryview(Path(path).read_bytes())
    if _checksum(content[:-4]) != content[-4:]:
        raise _DamagedError(path)
    return content[:-4]


class _Cache(FunctionCache):
    """Numba's disk cache, but machine code is read from it without setting up the compiler.

    Numba does that first, and a program whose kernels are all on the disk would pay 34 MB and a fifth of a second
    for what it never uses. Machine code needs the functions of Numba's runtime only. If there is none on the disk,
    the compiler sets itself up.
    """

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        # Older versions of Numba have the file's time for a stamp, which a container's image may keep to a second only.
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
    """A kernel could not be kept: said once for all."""
    global _keeps_all
    is_first, _keeps_all = _keeps_all, False
    if is_first:
        _warn(f"compiled kernels could not be kept on disk ({error}), so the next process compiles them anew; "
              "see `fastllm doctor`")  # fmt: skip


@cache
def _warn_of_folder() -> None:
    """Once for all kernels."""
    _warn(f"kernels that aren't in {_CACHE} are compiled anew by each process, as it can only be read; "
          "see `fastllm doctor`")  # fmt: skip


@cache
def _add_runtime() -> None:
    """Tell LLVM's linker where Numba's runtime is, by the names that compiled kernels call it by."""
    for name, address in runtime.c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def keep_on_disk(compiled: Any, function: Callable) -> None:
    """Have what is compiled read from the disk and kept there, where there is a folder."""
    if _CACHE is not None:
        with _cache_folder():
            compiled._cache = _Cache(function)


@contextmanager
def _cache_folder() -> Iterator[None]:
    """Let Numba use our folder for what is decorated within: other users of Numba in this process keep theirs.

    Numba would not look into a folder that it can't write to.
    """
    before, ensure = numba.config.CACHE_DIR, _CacheLocator.ensure_cache_path
    numba.config.CACHE_DIR = str(_CACHE or "")
    if not _IS_WRITABLE:
        _CacheLocator.ensure_cache_path = lambda locator: None
    try:
        yield
    finally:
        numba.config.CACHE_DIR, _CacheLocator.ensure_cache_path = before, ensure
