"""A second entry point of each compiled kernel, which reads its arguments from memory as 64-bit words (replay.py).

A call from Python unpacks its arguments each time. The words hold what that would yield: the bits of a number, the
address and the shape of an array, and for a tuple the words of its items.

The entry is compiled with the kernel and cached on the disk with it, under a name of its own. `CompilerWithEntries`
makes it, `entry_of` returns its address, and `words_of` makes the words it reads.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import BaseNativeLowering, NativeLowering, NativeParforLowering
from numba.np.ufunc import parallel
from numba.parfors.parfor import Parfor
from numba.parfors.parfor_lowering import ParforLower

from .llvm import INT32, INT64

__all__ = ["ENTRY", "CompilerWithEntries", "entry_of", "words_of"]

ENTRY = ir.FunctionType(INT32, [INT64.as_pointer()])


def words_of(value: Any, words: list[int]) -> Hashable:
    """Append an argument's words. Returns a key that determines its Numba type, which would take longer to get."""
    if isinstance(value, np.ndarray):
        words.append(value.__array_interface__["data"][0])
        words += value.shape
        return value.dtype, value.ndim, value.flags.num
    if isinstance(value, tuple):
        return tuple(words_of(item, words) for item in value)
    if isinstance(value, float | np.floating):
        bits = value if isinstance(value, np.float32) else np.float64(value)
        words.append(int.from_bytes(bits.tobytes(), sys.byteorder, signed=True))
    else:
        words.append(int(value))
    return type(value)


class _Reader:
    """Emits the code that rebuilds arguments from words, in order."""

    def __init__(self, context: Any, builder: ir.IRBuilder, words: ir.Value) -> None:
        self._context, self._builder, self._words = context, builder, words
        self._number = 0

    def _word(self) -> ir.Value:
        place = self._builder.gep(self._words, [ir.Constant(INT64, self._number)])
        self._number += 1
        return self._builder.load(place)

    def read(self, kind: types.Type) -> ir.Value:
        builder = self._builder
        if isinstance(kind, types.Array):
            return self._array(kind)
        if isinstance(kind, types.BaseTuple):
            return self._context.make_tuple(builder, kind, [self.read(item) for item in kind])
        word, llvm_type = self._word(), self._context.get_value_type(kind)
        if isinstance(kind, types.Float):
            bits = builder.trunc(word, INT32) if kind.bitwidth == 32 else word
            return builder.bitcast(bits, llvm_type)
        return builder.trunc(word, llvm_type)  # does nothing where both have 64 bits

    def _array(self, kind: types.Array) -> ir.Value:
        from numba.np.arrayobj import populate_array  # here, as it imports much that only compilation needs

        builder, array = self._builder, self._context.make_array(kind)(self._context, self._builder)
        data = builder.inttoptr(self._word(), array.data.type)
        shape = [self._word() for _ in range(kind.ndim)]
        itemsize = self._context.get_constant(
            types.intp, self._context.get_abi_sizeof(self._context.get_data_type(kind.dtype))
        )
        strides = [itemsize]
        for length in shape[:0:-1]:
            strides.insert(0, builder.mul(strides[0], length))
        populate_array(array, data, shape, strides, itemsize, meminfo=None)
        return array._getvalue()


def _is_read(kind: types.Type) -> bool:
    if isinstance(kind, types.Array):
        return kind.layout == "C"
    if isinstance(kind, types.BaseTuple):
        return all(map(_is_read, kind))
    return isinstance(kind, types.Integer | types.Boolean | types.Float)


def _name(fndesc: Any) -> str:
    return f"words.{fndesc.mangled_name}"


class _WithoutLock:
    """Numba's context for emitting the start of a parallel region, but without the code that takes and drops the GIL.

    A kernel runs without the GIL. While another thread runs Python, acquiring it takes five milliseconds: a token of a
    small model, with sixty regions, took a third of a second instead of three milliseconds.
    """

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def get_python_api(self, builder: ir.IRBuilder) -> Any:
        return SimpleNamespace(
            gil_ensure=lambda: None,
            save_thread=lambda: None,
            restore_thread=lambda state: None,
            gil_release=lambda state: None,
        )


@contextmanager
def _regions_without_lock() -> Iterator[None]:
    """Within the block, emit parallel regions without the GIL (_WithoutLock).

    This patches a function of Numba's. As Numba compiles one function at a time, no other function is affected.
    """
    build = parallel.build_gufunc_kernel
    parallel.build_gufunc_kernel = lambda library, context, *others: build(library, _WithoutLock(context), *others)
    try:
        yield
    finally:
        parallel.build_gufunc_kernel = build


class _Lower(ParforLower):
    def lower(self) -> None:
        """Emit the kernel and its entry. The entry returns the kernel's status: 0, or another number on failure."""
        for block in self.blocks.values():
            for loop in block.find_insts(Parfor):
                loop.flags = loop.flags.copy()
                loop.flags.no_cpython_wrapper = True  # its body is a function of its own, which Python never calls
        with _regions_without_lock():
            super().lower()
        context, fndesc = self.context, self.fndesc
        if not all(map(_is_read, fndesc.argtypes)):
            return
        module = context.create_module("entry")
        kernel = ir.Function(
            module, context.call_conv.get_function_type(fndesc.restype, fndesc.argtypes), fndesc.llvm_func_name
        )
        function = ir.Function(module, ENTRY, _name(fndesc))
        builder = ir.IRBuilder(function.append_basic_block())
        reader = _Reader(context, builder, function.args[0])
        arguments = [reader.read(kind) for kind in fndesc.argtypes]
        status, _ = context.call_conv.call_function(
            builder, kernel, fndesc.restype, fndesc.argtypes, arguments, attrs=("noinline",)
        )
        builder.ret(status.code)
        self.library.add_ir_module(module)


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(BaseNativeLowering):
    _name = "fastllm_lowering"

    @property
    def lowering_class(self) -> type:
        return _Lower


class CompilerWithEntries(CompilerBase):
    """Numba's own pipeline, except that the kernel gets an entry."""

    def define_pipelines(self) -> list:
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.passes = [
            (_Lowering if kind in (NativeLowering, NativeParforLowering) else kind, purpose)
            for kind, purpose in manager.passes
        ]
        manager.finalize()
        return [manager]


def entry_of(compiled: Any, arguments: tuple) -> int:
    """The address of a kernel's entry for arguments of these types, compiled if need be. TypeError if it has none."""
    kinds = tuple(map(compiled.typeof_pyval, arguments))
    compiled.compile(kinds)
    result = compiled.overloads[kinds]
    address = result.library.get_pointer_to_function(_name(result.fndesc))
    if not address:
        raise TypeError(
            f"words stand for C-contiguous arrays, numbers and tuples of these; got {kinds}; for these, Numba "
            f"{numba.__version__} made no function of words of {compiled.__name__}"
        )
    return address
