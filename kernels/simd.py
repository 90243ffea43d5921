"""Vectors of float32 and pointers for use in Numba kernels.

LLVM vectorises simple loops by itself. The matrix product needs more: control over which values stay in registers. Here
the Numba type `Vector` stands for LLVM's `<LANES x float>`, and each function below becomes one instruction or a few
(llvm.py).

    pointer    address of an array's first element; p[i] skips Numba's test for a negative index, which alone cost 20%
               of the matrix product
    advance    address of the n-th element from p
    copy_times copies one vector, multiplied lane by lane
    FLOATS, HALVES, BYTES, INDICES  types of pointers. HALVES point to float16, which Numba sees as the bits (uint16):
               loads give float32, stores round. INDICES point to int32
    load, load_all, store, store_lanes, add, ...   for loops over rows, a vector at a time, the last one masked. LLVM,
               left to itself, does the last elements one by one, and these are most of a short row
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from . import llvm
from .llvm import FLOAT, INT16, INT32, INT64, LANES

__all__ = [
    "BYTES",
    "FLOATS",
    "HALVES",
    "INDICES",
    "PROBE_SUMS",
    "add",
    "advance",
    "advance_optional",
    "as_bytes",
    "as_floats",
    "as_halves",
    "bits_of_float",
    "broadcast",
    "copy_times",
    "float_from_bits",
    "fma",
    "is_null",
    "larger",
    "largest_lane",
    "load",
    "load_all",
    "maximum",
    "multiply",
    "multiply_add",
    "multiply_add_rounds",
    "nearest",
    "nearest_lanes",
    "null",
    "optional",
    "pointer",
    "store",
    "store_lanes",
    "subtract",
    "sum_of_lanes",
    "times_power_of_two",
    "where_at_least",
]

PROBE_SUMS = 12  # accumulators of multiply_add_rounds: enough to hide the latency, few enough for the registers

FLOATS = types.CPointer(types.float32)
HALVES = types.CPointer(types.uint16)
BYTES = types.CPointer(types.uint8)
INDICES = types.CPointer(types.int32)


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c for scalars, rounded once where HAS_FMA; the compiler may vectorise it but not reorder it."""
    floats = types.float32, types.float32, types.float32
    return types.float32(*floats), lambda context, builder, signature, arguments: llvm.fma(builder, *arguments)


@intrinsic
def float_from_bits(typingctx, bits):
    """The float32 whose bits are those of an int32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), codegen


@intrinsic
def bits_of_float(typingctx, number):
    """The bits of a float32 as an int32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], INT32)

    return types.int32(types.float32), codegen


@intrinsic
def nearest(typingctx, number):
    """The integer nearest to a float32, as a float32; halfway, the even one."""

    def codegen(context, builder, signature, arguments):
        return llvm.call(builder, "llvm.rint.f32", FLOAT, arguments)

    return types.float32(types.float32), codegen


@intrinsic
def larger(typingctx, a, b):
    """The larger of two float32, which LLVM, unlike `a if a > b else b`, vectorises in a loop that finds a maximum.

    For that it is told that neither is NaN. If one is, don't rely on which of the two comes out.
    """

    def codegen(context, builder, signature, arguments):
        function_type = ir.FunctionType(FLOAT, [FLOAT, FLOAT])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.maxnum.f32")
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def pointer(typingctx, array):
    """Address of an array's first element."""

    def codegen(context, builder, signature, arguments):
        return cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def optional(typingctx, array):
    """Address of an array's first element, or null if it has none."""

    def codegen(context, builder, signature, arguments):
        fields = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        is_empty = builder.icmp_unsigned("==", fields.nitems, ir.Constant(fields.nitems.type, 0))
        return builder.select(is_empty, ir.Constant(fields.data.type, None), fields.data)

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def null(typingctx):
    """The null address, which stands for an absent array."""
    return FLOATS(), lambda context, builder, signature, arguments: ir.Constant(FLOAT.as_pointer(), None)


@intrinsic
def is_null(typingctx, pointer):
    """Whether an address is null, as for an absent array."""

    def codegen(context, builder, signature, arguments):
        return builder.icmp_unsigned("==", arguments[0], ir.Constant(arguments[0].type, None))

    return types.boolean(FLOATS), codegen


@intrinsic
def as_bytes(typingctx, pointer):
    """The same address as a pointer to bytes."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(8).as_pointer())

    return BYTES(FLOATS), codegen


@intrinsic
def as_floats(typingctx, pointer):
    """The same address as a pointer to float32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], FLOAT.as_pointer())

    return FLOATS(pointer), codegen


@intrinsic
def as_halves(typingctx, pointer):
    """The same address as a pointer to float16."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], INT16.as_pointer())

    return HALVES(pointer), codegen


@intrinsic
def advance(typingctx, pointer, offset):
    """Address of the offset-th element from pointer, in elements of its type, not bytes."""

    def codegen(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), codegen


@intrinsic
def advance_optional(typingctx, pointer, offset):
    """As advance, but null stays null."""

    def codegen(context, builder, signature, arguments):
        pointer, offset = arguments
        none = ir.Constant(pointer.type, None)
        return builder.select(builder.icmp_unsigned("==", pointer, none), none, builder.gep(pointer, [offset]))

    return FLOATS(FLOATS, types.int64), codegen


class Vector(types.Type):
    """The Numba type of LANES float32 in one register: what `load` gives and `store` takes."""

    def __init__(self) -> None:
        super().__init__(f"Vector({LANES})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A Vector is represented by LLVM's vector type."""

    def __init__(self, manager, vector):
        super().__init__(manager, vector, llvm.VECTOR)


VECTOR = Vector()


@intrinsic
def broadcast(typingctx, number):
    """A vector with one float32 in all lanes."""
    return VECTOR(types.float32), lambda context, builder, signature, arguments: llvm.broadcast(builder, arguments[0])


@intrinsic
def load(typingctx, pointer, count, otherwise):
    """LANES floats from an address. Lanes from `count` on are not read: they are those of `otherwise`."""

    def codegen(context, builder, signature, arguments):
        pointer, count, otherwise = arguments
        return llvm.masked_load(builder, pointer, llvm.lanes_below(builder, count), otherwise)

    return VECTOR(FLOATS, types.int64, VECTOR), codegen


@intrinsic
def load_all(typingctx, pointer):
    """LANES numbers from an address of floats or halves, as float32."""
    return VECTOR(pointer), lambda context, builder, signature, arguments: llvm.read(builder, arguments[0])


@intrinsic
def store(typingctx, pointer, vector):
    """Write all lanes of a vector to an address of floats, or rounded, of halves."""

    def codegen(context, builder, signature, arguments):
        llvm.write(builder, arguments[1], arguments[0])
        return context.get_dummy_value()

    return types.void(pointer, VECTOR), codegen


@intrinsic
def store_lanes(typingctx, pointer, vector, count):
    """As store, but only the first `count` lanes."""

    def codegen(context, builder, signature, arguments):
        pointer, vector, count = arguments
        llvm.write(builder, vector, pointer, llvm.lanes_below(builder, count))
        return context.get_dummy_value()

    return types.void(pointer, VECTOR, types.int64), codegen


@intrinsic
def add(typingctx, a, b):
    """a + b, lane by lane."""
    return VECTOR(VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def subtract(typingctx, a, b):
    """a - b, lane by lane."""
    return VECTOR(VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def multiply(typingctx, a, b):
    """a * b, lane by lane."""
    return VECTOR(VECTOR, VECTOR), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a * b + c, lane by lane, rounded once where HAS_FMA."""
    return VECTOR(VECTOR, VECTOR, VECTOR), lambda context, builder, signature, arguments: llvm.fma(builder, *arguments)


@intrinsic
def maximum(typingctx, a, b):
    """The larger of a and b, lane by lane; b where either is NaN."""

    def codegen(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return VECTOR(VECTOR, VECTOR), codegen


@intrinsic
def where_at_least(typingctx, vector, limit, otherwise):
    """vector where it is at least limit or NaN, elsewhere otherwise, lane by lane."""

    def codegen(context, builder, signature, arguments):
        vector, limit, otherwise = arguments
        return builder.select(builder.fcmp_ordered("<", vector, limit), otherwise, vector)

    return VECTOR(VECTOR, VECTOR, VECTOR), codegen


@intrinsic
def nearest_lanes(typingctx, vector):
    """The integer nearest to each lane, as float32; halfway, the even one."""

    def codegen(context, builder, signature, arguments):
        return llvm.call(builder, f"llvm.rint.v{LANES}f32", llvm.VECTOR, arguments)

    return VECTOR(VECTOR), codegen


@intrinsic
def times_power_of_two(typingctx, vector, exponent):
    """vector * 2^exponent for integral exponents, lane by lane, by adding to the exponent bits.

    vector and the result must be normal numbers; only 1 * 2^-127 may be asked for too, and gives 0.
    """

    def codegen(context, builder, signature, arguments):
        vector, exponent = arguments
        integers = ir.VectorType(INT32, LANES)
        shift = ir.Constant(integers, [23] * LANES)
        bits = builder.add(builder.bitcast(vector, integers), builder.shl(builder.fptosi(exponent, integers), shift))
        return builder.bitcast(bits, llvm.VECTOR)

    return VECTOR(VECTOR, VECTOR), codegen


@intrinsic
def sum_of_lanes(typingctx, vector):
    """The sum of a vector's lanes."""
    return types.float32(VECTOR), lambda context, builder, signature, arguments: llvm.reduce(
        builder, arguments[0], builder.fadd
    )


@intrinsic
def largest_lane(typingctx, vector):
    """The largest of a vector's lanes; a NaN may be passed over."""

    def codegen(context, builder, signature, arguments):
        return llvm.reduce(builder, arguments[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return types.float32(VECTOR), codegen


@intrinsic
def copy_times(typingctx, to, source, factors):
    """Copy LANES floats from source to `to`, each multiplied by the same lane of factors."""

    def codegen(context, builder, signature, arguments):
        to, source, factors = arguments
        llvm.store(builder, builder.fmul(llvm.load(builder, source), factors), to)
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS, VECTOR), codegen


@intrinsic
def multiply_add_rounds(typingctx, out, rounds):
    """Do PROBE_SUMS independent multiply-adds of vectors in each round; the sum of their results goes to out (LANES,).

    Nothing is loaded or stored meanwhile, so the time measures the CPU's peak of multiply-adds.
    """

    def codegen(context, builder, signature, arguments):
        out, rounds = arguments
        factor, term = (ir.Constant(llvm.VECTOR, [value] * LANES) for value in (0.5, 1.0))
        entry, loop = builder.block, builder.append_basic_block("rounds")
        after = builder.append_basic_block("rounds.after")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(INT64)
        sums = [builder.phi(llvm.VECTOR) for _ in range(PROBE_SUMS)]
        new = [llvm.fma(builder, total, factor, term) for total in sums]
        following = builder.add(count, ir.Constant(INT64, 1))
        builder.cbranch(builder.icmp_signed("<", following, rounds), loop, after)
        count.add_incoming(ir.Constant(INT64, 0), entry)
        count.add_incoming(following, loop)
        for number, (total, result) in enumerate(zip(sums, new, strict=True)):
            # They start at 3, not 2: as 2 * 0.5 + 1 = 2, the compiler would drop the loop.
            total.add_incoming(ir.Constant(llvm.VECTOR, [float(number + 3)] * LANES), entry)
            total.add_incoming(result, loop)
        builder.position_at_end(after)
        whole = new[0]
        for result in new[1:]:
            whole = builder.fadd(whole, result)
        llvm.store(builder, whole, out)
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64), codegen
