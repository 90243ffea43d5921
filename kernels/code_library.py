"""Machine code only of what runs.

Numba puts each function into a "library", and makes machine code of every library as soon as it is complete: also of
inlined functions, and of the body of a parallel loop and its wrapper, which are only copied into the kernel's library.
That was a tenth of the first start, and collecting garbage another twentieth.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

__all__ = ["compiling"]


class _Library(JITCodeLibrary):
    """A library that makes machine code when an address in it, or the code itself, is first asked for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._environments: list[tuple[str, object]] | None = []  # None once there is machine code

    def _set_compiled_object(self, value: bytes) -> None:
        self._environments = None  # this library is read from the disk
        super()._set_compiled_object(value)

    def _finalize_final_module(self) -> None:
        if self._environments is None:
            super()._finalize_final_module()
        else:
            self._finalize_dynamic_globals()
            self._finalized = True

    def _emit(self) -> None:
        self._ensure_finalized()
        if self._environments is None:
            return
        environments, self._environments = self._environments, None
        self._dynamic_globals.clear()  # which are found again
        super()._finalize_final_module()
        for name, environment in environments:
            self._codegen.set_env(name, environment)

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        if any(function.name == name for function in self.get_defined_functions()):
            self._emit()
        return super().get_pointer_to_function(name)

    def _get_compiled_object(self) -> bytes:
        self._emit()
        return super()._get_compiled_object()

    @property
    def codegen(self) -> Any:
        """Numba's code generator; while there is no machine code, set_env only notes what it is to set there."""
        return self._codegen if self._environments is None else self

    def set_env(self, name: str, environment: object) -> None:
        assert self._environments is not None
        self._environments.append((name, environment))


@contextmanager
def compiling() -> Iterator[None]:
    """Within the block, Numba makes machine code only of what runs, and no garbage is collected.

    Other threads that compile something wait until the block ends.
    """
    generator = cpu_target.target_context.codegen()
    with global_compiler_lock:
        library, collects = generator._library_class, gc.isenabled()
        generator._library_class = _Library
        gc.disable()
        try:
            yield
        finally:
            generator._library_class = library
            if collects:
                gc.enable()
