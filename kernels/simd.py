"""Vectors of float32 inside Numba kernels: the type `Vector`, pointers, and a few operations on both.

Numba vectorises simple loops by itself (LLVM does). The matrix product needs more: to say which values stay
in registers. Here a Numba type stands for LLVM's `<LANES x float>`, and each function below becomes one
instruction or a few. LLVM lowers the generic type to AVX-512, AVX2, SSE or NEON alike; nothing here is x86's.

    LANES      floats in a vector: 16 with AVX-512, 8 with AVX, else 4
    LINE       floats in a cache line
    pointer    address of an array's first element; p[i] reads without Numba's test for a negative index,
               which alone cost 20% of the matrix product
    advance    address of the n-th float from p
    copy_times one vector from one address to another, multiplied by a second
    HALVES     addresses of float16, as their bits: read as float32, rounded when written
    load, load_all, store, add, ...   rows of numbers, a vector at a time, the last one with the lanes that there
               are. LLVM, left to itself, does the last elements one by one, and in a short row those are most

Loads and stores assume an alignment of 4 bytes: rows of odd length are not aligned to more, and on the CPUs
of the last ten years an unaligned load of aligned data costs nothing.
"""

from __future__ import annotations

from functools import partial

import llvmlite.binding
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "BYTES",
    "CACHE_LINE",
    "FLOATS",
    "HALVES",
    "HAS_BYTE_PRODUCTS",
    "HAS_HALF",
    "LANES",
    "LINE",
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


def _features() -> dict[str, bool]:
    """Of the CPU that Numba compiles for: this one's, unless NUMBA_CPU_FEATURES says otherwise."""
    if config.CPU_FEATURES is not None:
        return dict.fromkeys(config.CPU_FEATURES.replace("+", "").split(","), True)
    return dict(llvmlite.binding.get_host_cpu_features())


FEATURES = _features()
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx") else 4  # of the widest vectors
# Whether an instruction makes a float32 of a float16. Elsewhere LLVM would call a function that may not be there.
HAS_HALF = bool(FEATURES.get("f16c") or FEATURES.get("fp16") or FEATURES.get("fullfp16"))
# Whether an instruction multiplies bytes with bytes and adds four products to a whole number.
HAS_BYTE_PRODUCTS = bool(FEATURES.get("avxvnni") or (FEATURES.get("avx512vnni") and FEATURES.get("avx512vl")))

CACHE_LINE = 64  # bytes
LINE = CACHE_LINE // 4  # floats
PROBE_SUMS = 12  # accumulators of `multiply_add_rounds`: more than a multiply-add's latency, fewer than registers

_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_LONG, _SHORT = ir.IntType(32), ir.IntType(16)
_VECTOR = ir.VectorType(_FLOAT, LANES)
FLOATS = types.CPointer(types.float32)
HALVES = types.CPointer(types.uint16)
BYTES = types.CPointer(types.uint8)


def _at(builder, pointer, *offsets):
    for offset in offsets:
        pointer = builder.gep(pointer, [offset])
    return pointer


def _load(builder, pointer, kind=_VECTOR, align=4):
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = align
    return value


def _store(builder, value, pointer):
    store = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    store.align = 2 if value.type.element == _SHORT else 4


def _broadcast(builder, scalar, lanes=LANES):
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _call(builder, name, result, arguments):
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _call_address(builder, address, *arguments):
    """Call a function that returns nothing by its address, a whole number."""
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


def _prefetch(builder, pointer, is_write=False):
    """Bring the line of an address nearer. Of any address: none faults.

    What will be written, to the first cache; what will be read, to the second, and to all beyond it. In the first it
    would push out what is in use: an AMD core then read 16 GB/s in place of 26. Without those beyond, an Intel core
    brings half as much from memory.
    """
    byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    write, keep, data = (ir.Constant(ir.IntType(32), value) for value in (int(is_write), 3 if is_write else 2, 1))
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, write, keep, data])


def _opaque(builder, value):
    """The same value, of which LLVM knows nothing: an empty piece of assembler, on any processor."""
    kind = ir.FunctionType(value.type, [value.type])
    return builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=False), [value])


def _same(kind, lanes, number):
    """A vector with one constant in all lanes."""
    return ir.Constant(ir.VectorType(kind, lanes), [number] * lanes)


def _from_half(builder, bits):
    """float32 from the bits of float16, lane by lane.

    Where no instruction does it, exponent and fraction move to their places in a float32, which is then 2^112 times
    too small; so subnormal numbers come out right too. What is infinite or NaN gets the largest exponent after that.
    """
    lanes = bits.type.count
    floats, longs = ir.VectorType(_FLOAT, lanes), ir.VectorType(_LONG, lanes)
    if HAS_HALF:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes)), floats)
    same = partial(_same, _LONG, lanes)
    wide = builder.zext(bits, longs)
    magnitude = builder.and_(wide, same(0x7FFF))
    number = builder.bitcast(builder.shl(magnitude, same(13)), floats)
    number = builder.bitcast(builder.fmul(number, _same(_FLOAT, lanes, 2.0**112)), longs)
    is_finite = builder.icmp_unsigned("<", magnitude, same(0x7C00))
    number = builder.or_(number, builder.select(is_finite, same(0), same(0x7F800000)))
    sign = builder.shl(builder.and_(wide, same(0x8000)), same(16))
    return builder.bitcast(builder.or_(number, sign), floats)


def _to_half(builder, vector):
    """The bits of the float16 nearest to each lane, of two as near the even one; beyond 65504 infinity.

    Where no instruction does it: half of what is cut off is added to the bits, and to odd ones as much. A number below
    2^-14 has its last bit where the last one of 0.5 is, so that adding 0.5 rounds it.
    """
    lanes = vector.type.count
    longs, shorts = ir.VectorType(_LONG, lanes), ir.VectorType(_SHORT, lanes)
    if HAS_HALF:
        return builder.bitcast(builder.fptrunc(vector, ir.VectorType(ir.HalfType(), lanes)), shorts)
    same = partial(_same, _LONG, lanes)
    bits = builder.bitcast(vector, longs)
    magnitude = builder.and_(bits, same(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, same(13)), same(1))
    rounded = builder.add(builder.add(magnitude, same(0x0FFF)), odd)
    normal = builder.lshr(builder.sub(rounded, same(112 << 23)), same(13))
    half = _same(_FLOAT, lanes, 0.5)
    small = builder.bitcast(builder.fadd(builder.bitcast(magnitude, vector.type), half), longs)
    small = builder.sub(small, builder.bitcast(half, longs))
    beyond = builder.select(builder.icmp_unsigned(">", magnitude, same(0x7F800000)), same(0x7E00), same(0x7C00))
    result = builder.select(builder.icmp_unsigned("<", magnitude, same(113 << 23)), small, normal)
    result = builder.select(builder.icmp_unsigned("<", rounded, same(143 << 23)), result, beyond)
    sign = builder.lshr(builder.and_(bits, same(0x80000000)), same(16))
    return builder.trunc(builder.or_(result, sign), shorts)


def _is_of_halves(pointer):
    return pointer.type.pointee == _SHORT


def _read(builder, pointer, mask=None):
    """As many float32 as a vector or, if given, a mask has lanes, from floats or halves; 0 where the mask is false."""
    if not _is_of_halves(pointer):
        return _load(builder, pointer) if mask is None else _masked_load(builder, pointer, mask)
    shorts = ir.VectorType(_SHORT, LANES)
    if mask is None:
        return _from_half(builder, _load(builder, pointer, shorts, align=2))
    return _from_half(builder, _masked_load(builder, pointer, mask, _same(_SHORT, LANES, 0)))


def _write(builder, vector, pointer, mask=None):
    """Write a vector's lanes, or those of a mask, to floats or halves."""
    if _is_of_halves(pointer):
        vector = _to_half(builder, vector)
    if mask is None:
        _store(builder, vector, pointer)
    else:
        _masked_store(builder, vector, pointer, mask)


def _fma(builder, a, b, c):
    return _call(builder, f"llvm.fma.v{a.type.count}f32", a.type, [a, b, c])


def _lanes_below(builder, count, width=LANES):
    """For each lane of so many, whether its number is below count, which must fit an int32."""
    limit = _broadcast(builder, builder.trunc(count, ir.IntType(32)), width)
    return builder.icmp_signed("<", ir.Constant(limit.type, list(range(width))), limit)


def _masked_load(builder, pointer, mask, otherwise=None):
    """As many lanes as the mask has; where it is false, those of `otherwise`, or zeros."""
    width = mask.type.count
    if otherwise is None:
        otherwise = _same(_FLOAT, width, 0.0)
    vector, align = otherwise.type, ir.Constant(_LONG, 2 if otherwise.type.element == _SHORT else 4)
    address = builder.bitcast(pointer, vector.as_pointer())
    return _call(builder, f"llvm.masked.load.{_suffix(vector)}.p0", vector, [address, align, mask, otherwise])


def _masked_store(builder, value, pointer, mask):
    address = builder.bitcast(pointer, value.type.as_pointer())
    align = ir.Constant(_LONG, 2 if value.type.element == _SHORT else 4)
    name = f"llvm.masked.store.{_suffix(value.type)}.p0"
    _call(builder, name, ir.VoidType(), [value, address, align, mask])


def _suffix(vector):
    """What LLVM's names have at the end for a vector of floats or shorts."""
    return f"v{vector.count}{'i16' if vector.element == _SHORT else 'f32'}"


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c for scalars, rounded once; the compiler may vectorise it but not reorder it."""

    def codegen(context, builder, signature, arguments):
        return _call(builder, "llvm.fma.f32", _FLOAT, arguments)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def float_from_bits(typingctx, bits):
    """The float32 whose bits are those of an int32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), codegen


@intrinsic
def bits_of_float(typingctx, number):
    """The bits of a float32 as an int32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def nearest(typingctx, number):
    """The whole number nearest to a float32, as a float32."""

    def codegen(context, builder, signature, arguments):
        return _call(builder, "llvm.rint.f32", _FLOAT, arguments)

    return types.float32(types.float32), codegen


@intrinsic
def larger(typingctx, a, b):
    """The larger of two float32. Unlike `a if a > b else b`, LLVM vectorises a loop that finds the largest with it.

    For that it has to be told that neither is NaN. If one is, the result is one of the two.
    """

    def codegen(context, builder, signature, arguments):
        function_type = ir.FunctionType(_FLOAT, [_FLOAT, _FLOAT])
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
    """The address that stands for no array."""
    return FLOATS(), lambda context, builder, signature, arguments: ir.Constant(_FLOAT.as_pointer(), None)


@intrinsic
def is_null(typingctx, pointer):
    """Whether an address stands for no array."""

    def codegen(context, builder, signature, arguments):
        return builder.icmp_unsigned("==", arguments[0], ir.Constant(arguments[0].type, None))

    return types.boolean(FLOATS), codegen


@intrinsic
def as_bytes(typingctx, pointer):
    """The same address, of bytes."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(8).as_pointer())

    return BYTES(FLOATS), codegen


@intrinsic
def as_floats(typingctx, pointer):
    """The same address, of float32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _FLOAT.as_pointer())

    return FLOATS(pointer), codegen


@intrinsic
def as_halves(typingctx, pointer):
    """The same address, of float16."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _SHORT.as_pointer())

    return HALVES(pointer), codegen


@intrinsic
def advance(typingctx, pointer, offset):
    """Address of the offset-th number from pointer, floats or halves."""

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
    """LANES float32 in one register, as a value in Numba code: what `load` gives and `store` takes."""

    def __init__(self) -> None:
        super().__init__(f"Vector({LANES})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A Vector is LLVM's vector."""

    def __init__(self, manager, vector):
        super().__init__(manager, vector, _VECTOR)


VECTOR = Vector()


@intrinsic
def broadcast(typingctx, number):
    """A vector with one float32 in all lanes."""
    return VECTOR(types.float32), lambda context, builder, signature, arguments: _broadcast(builder, arguments[0])


@intrinsic
def load(typingctx, pointer, count, otherwise):
    """LANES floats from an address. Lanes from `count` on are not read: they get the value of `otherwise`."""

    def codegen(context, builder, signature, arguments):
        pointer, count, otherwise = arguments
        return _masked_load(builder, pointer, _lanes_below(builder, count), otherwise)

    return VECTOR(FLOATS, types.int64, VECTOR), codegen


@intrinsic
def load_all(typingctx, pointer):
    """LANES numbers from an address, floats or halves."""
    return VECTOR(pointer), lambda context, builder, signature, arguments: _read(builder, arguments[0])


@intrinsic
def store(typingctx, pointer, vector):
    """Write all lanes of a vector to an address, of floats or halves."""

    def codegen(context, builder, signature, arguments):
        _write(builder, arguments[1], arguments[0])
        return context.get_dummy_value()

    return types.void(pointer, VECTOR), codegen


@intrinsic
def store_lanes(typingctx, pointer, vector, count):
    """As store, but only as many lanes as `count` says."""

    def codegen(context, builder, signature, arguments):
        pointer, vector, count = arguments
        _write(builder, vector, pointer, _lanes_below(builder, count))
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
    """a * b + c, lane by lane, rounded once."""
    return VECTOR(VECTOR, VECTOR, VECTOR), lambda context, builder, signature, arguments: _fma(builder, *arguments)


@intrinsic
def maximum(typingctx, a, b):
    """The larger of a and b, lane by lane; b where one is NaN."""

    def codegen(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return VECTOR(VECTOR, VECTOR), codegen


@intrinsic
def where_at_least(typingctx, vector, limit, otherwise):
    """Each lane, but that of `otherwise` where it is below that of `limit`; NaN stays."""

    def codegen(context, builder, signature, arguments):
        vector, limit, otherwise = arguments
        return builder.select(builder.fcmp_ordered("<", vector, limit), otherwise, vector)

    return VECTOR(VECTOR, VECTOR, VECTOR), codegen


@intrinsic
def nearest_lanes(typingctx, vector):
    """The whole number nearest to each lane."""

    def codegen(context, builder, signature, arguments):
        return _call(builder, f"llvm.rint.v{LANES}f32", _VECTOR, arguments)

    return VECTOR(VECTOR), codegen


@intrinsic
def times_power_of_two(typingctx, vector, exponent):
    """vector * 2^exponent for whole exponents, by adding to the exponents' bits; vector must be a normal number.

    So must the result be, or 0 = 1 * 2^-127.
    """

    def codegen(context, builder, signature, arguments):
        vector, exponent = arguments
        integers = ir.VectorType(ir.IntType(32), LANES)
        shift = ir.Constant(integers, [23] * LANES)
        bits = builder.add(builder.bitcast(vector, integers), builder.shl(builder.fptosi(exponent, integers), shift))
        return builder.bitcast(bits, _VECTOR)

    return VECTOR(VECTOR, VECTOR), codegen


def _reduce(builder, vector, combine):
    """Combine a vector's lanes into one: halves with halves."""
    width = LANES
    while width > 1:
        width //= 2
        index = ir.VectorType(ir.IntType(32), width)
        low, high = (ir.Constant(index, list(range(start, start + width))) for start in (0, width))
        vector = combine(builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


@intrinsic
def sum_of_lanes(typingctx, vector):
    """The sum of a vector's lanes."""
    return types.float32(VECTOR), lambda context, builder, signature, arguments: _reduce(
        builder, arguments[0], builder.fadd
    )


@intrinsic
def largest_lane(typingctx, vector):
    """The largest of a vector's lanes."""

    def codegen(context, builder, signature, arguments):
        return _reduce(builder, arguments[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return types.float32(VECTOR), codegen


@intrinsic
def copy_times(typingctx, to, source, factors):
    """Copy LANES floats, each multiplied by a lane of factors."""

    def codegen(context, builder, signature, arguments):
        to, source, factors = arguments
        _store(builder, builder.fmul(_load(builder, source), factors), to)
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS, VECTOR), codegen


@intrinsic
def multiply_add_rounds(typingctx, out, rounds):
    """PROBE_SUMS independent sums, each multiplied and added to once a round; their total goes to out (LANES,).

    Nothing is loaded or stored meanwhile, so this is as fast as the CPU multiplies and adds.
    """

    def codegen(context, builder, signature, arguments):
        out, rounds = arguments
        factor, term = (ir.Constant(_VECTOR, [value] * LANES) for value in (0.5, 1.0))
        entry, loop = builder.block, builder.append_basic_block("rounds")
        after = builder.append_basic_block("rounds.after")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(_INT)
        sums = [builder.phi(_VECTOR) for _ in range(PROBE_SUMS)]
        new = [_fma(builder, total, factor, term) for total in sums]
        following = builder.add(count, ir.Constant(_INT, 1))
        builder.cbranch(builder.icmp_signed("<", following, rounds), loop, after)
        count.add_incoming(ir.Constant(_INT, 0), entry)
        count.add_incoming(following, loop)
        for number, (total, result) in enumerate(zip(sums, new, strict=True)):
            # Not 2: 2 * 0.5 + 1 is 2 again, which the compiler knows and leaves out.
            total.add_incoming(ir.Constant(_VECTOR, [float(number + 3)] * LANES), entry)
            total.add_incoming(result, loop)
        builder.position_at_end(after)
        whole = new[0]
        for result in new[1:]:
            whole = builder.fadd(whole, result)
        _store(builder, whole, out)
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64), codegen
