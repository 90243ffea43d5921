"""Arrays beside unreadable pages, where reading or writing past an end is a SIGSEGV, or between margins of one byte.

Linux and macOS only.
"""

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

if sys.platform not in ("linux", "darwin"):
    sys.exit("pages are made unreadable with mprotect, which only Linux and macOS have")

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MARGIN = 0xFF
PLACES = ("begin", "end", "margin")


def place(array: Any, where: str, rng: np.random.Generator) -> Any:
    """A copy between two unreadable pages: at the "begin" or the "end" of what lies between, or with a "margin"."""
    if not isinstance(array, np.ndarray) or array.size == 0:
        return array
    page = mmap.PAGESIZE
    room = -(-array.nbytes // page) * page + (2 * page if where == "margin" else 0)
    memory = np.frombuffer(mmap.mmap(-1, room + 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    for address in (memory.ctypes.data, memory.ctypes.data + page + room):
        if LIBC.mprotect(address, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    inside = memory[page : page + room]
    inside[:] = MARGIN
    last = room - array.nbytes
    start = {"begin": 0, "end": last, "margin": int(rng.integers(last + 1)) // array.itemsize * array.itemsize}[where]
    copy = inside[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = array.flags.writeable
    return copy


def margins_changed(copy: np.ndarray) -> bool:
    """Whether the memory around a copy that `place` made was written, up to the unreadable pages."""
    memory = copy
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    start, page = copy.ctypes.data - memory.ctypes.data, mmap.PAGESIZE
    return bool((memory[page:start] != MARGIN).any() or (memory[start + copy.nbytes : -page] != MARGIN).any())
