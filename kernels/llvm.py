"""Building blocks for LLVM code written by hand: what the CPU has, types, and functions that emit instructions.

The functions take llvmlite's builder and LLVM values, and emit code at the builder's position. simd.py wraps them for
use in Numba code; tile.py, row_group.py, cached_rows.py and the files for blocks build whole loops of them. LLVM lowers
the generic vectors to AVX-512, AVX2, SSE or NEON; only rounded.py names instructions of a CPU, x86's.

    LANES  floats in a vector: 16 with AVX-512, 8 with AVX, else 4
    LINE   floats in a cache line

Vector loads and stores assume no more alignment than the element's (4 bytes, 2 for float16): rows of odd length have no
more, and on the CPUs of the last ten years an unaligned load of aligned data costs nothing extra.
"""

from __future__ import annotations

from functools import partial

import llvmlite.binding
from llvmlite import ir
from numba import config
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features


def _features() -> dict[str, bool]:
    """The features Numba compiles for: NUMBA_CPU_FEATURES, or the CPU's own, less AVX where Numba disables it."""
    given = config.CPU_FEATURES
    names = (get_host_cpu_features() if given is None else given).split(",")
    return {name.lstrip("+-"): not name.startswith("-") for name in names if name}


FEATURES = _features()
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx") else 4  # floats in the widest vectors
_TRIPLE = llvmlite.binding.get_process_triple()
IS_X86 = _TRIPLE.startswith(("x86_64", "i386", "i686"))
# Whether there are instructions to convert float16. Without them LLVM would call a function that may not be there.
HAS_HALF = bool(FEATURES.get("f16c")) or _TRIPLE.startswith(("aarch64", "arm64"))
# Whether there is a fused multiply-add. Without it LLVM would call a function for each number.
HAS_FMA = bool(FEATURES.get("fma") or FEATURES.get("fma4") or not IS_X86)
# Whether there is an instruction that multiplies 16-bit integers and adds pairs of products, for whole vectors.
HAS_WORD_PRODUCTS = IS_X86 and bool(FEATURES.get({16: "avx512bw", 8: "avx2", 4: "sse2"}[LANES]))
# Whether there is one that also adds these sums to 32-bit accumulators.
HAS_WORD_SUMS = bool(FEATURES.get("avx512vnni") if LANES == 16 else LANES == 8 and FEATURES.get("avxvnni"))

CACHE_LINE = 64  # bytes
LINE = CACHE_LINE // 4  # floats

FLOAT = ir.FloatType()
INT64 = ir.IntType(64)
INT32, INT16 = ir.IntType(32), ir.IntType(16)
VECTOR = ir.VectorType(FLOAT, LANES)
LONGS = ir.VectorType(INT32, LANES)


def at(builder, pointer, *offsets):
    """The address `offsets`, added up, elements after a pointer."""
    for offset in offsets:
        pointer = builder.gep(pointer, [offset])
    return pointer


def numbers_there(builder, count, there):
    """The indices 0 to count - 1, those beyond the last of `there` elements (at least 1) replaced by that last one."""
    last = builder.sub(there, ir.Constant(INT64, 1))
    numbers = [ir.Constant(INT64, number) for number in range(count)]
    return [builder.select(builder.icmp_signed("<", number, last), number, last) for number in numbers]


def load(builder, pointer, kind=VECTOR, align=4):
    """The value of a type at an address."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = align
    return value


def store(builder, value, pointer):
    """Write a vector to an address."""
    instruction = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    instruction.align = 2 if value.type.element == INT16 else 4


def broadcast(builder, scalar, lanes=LANES):
    """A vector with one value in all lanes."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def shuffle(builder, vector, lanes, other=None):
    """A vector of the given lanes, in this order; the lanes of `other` are numbered after those of `vector`."""
    index = ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, vector if other is None else other, index)


def call(builder, name, result, arguments):
    """Call an LLVM intrinsic by its name; result: the type of its result."""
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def call_address(builder, address, *arguments):
    """Call a function that returns nothing by its address, an integer."""
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


def prefetch(builder, pointer, is_write=False):
    """Prefetch the cache line of an address, which may be invalid: a prefetch never faults.

    A line that will be written is brought to L1; one that will be read, to L2 and the levels beyond. In L1 the latter
    would evict what is in use: an AMD core then read 16 GB/s instead of 26. With the non-temporal hint, which
    bypasses the levels beyond, an Intel core got half as much from memory.
    """
    byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    write, keep, data = (ir.Constant(INT32, value) for value in (int(is_write), 3 if is_write else 2, 1))
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, write, keep, data])


def opaque(builder, value):
    """The same value, passed through empty inline assembly so that LLVM can deduce nothing about it."""
    kind = ir.FunctionType(value.type, [value.type])
    return builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=False), [value])


def align_stack(builder):
    """Align the function's stack frame to a cache line, for vectors that are spilled for want of registers.

    LLVM does so only if a variable on the stack asks for it; otherwise spilled 64-byte vectors straddle two lines.
    """
    place = cgutils.alloca_once(builder, VECTOR)
    place.align = CACHE_LINE
    kind = ir.FunctionType(ir.VoidType(), [place.type])
    builder.call(ir.InlineAsm(kind, "", "r", side_effect=True), [place])


def same(kind, lanes, number):
    """A vector with one constant in all lanes."""
    return ir.Constant(ir.VectorType(kind, lanes), [number] * lanes)


def from_half(builder, bits):
    """float32 from the bits of float16, lane by lane.

    Without an instruction for it: exponent and fraction are shifted to their places in a float32, which is multiplied
    by 2^112, for the exponents' biases differ by 112; this is right for subnormal numbers too. Infinity and NaN then
    get the largest exponent.
    """
    lanes = bits.type.count
    floats, longs = ir.VectorType(FLOAT, lanes), ir.VectorType(INT32, lanes)
    if HAS_HALF:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes)), floats)
    whole = partial(same, INT32, lanes)
    wide = builder.zext(bits, longs)
    magnitude = builder.and_(wide, whole(0x7FFF))
    number = builder.bitcast(builder.shl(magnitude, whole(13)), floats)
    number = builder.bitcast(builder.fmul(number, same(FLOAT, lanes, 2.0**112)), longs)
    is_finite = builder.icmp_unsigned("<", magnitude, whole(0x7C00))
    number = builder.or_(number, builder.select(is_finite, whole(0), whole(0x7F800000)))
    sign = builder.shl(builder.and_(wide, whole(0x8000)), whole(16))
    return builder.bitcast(builder.or_(number, sign), floats)


def to_half(builder, vector):
    """The bits of the float16 nearest to each lane; halfway, the even one; infinity from 65520 on.

    Without an instruction for it: to the bits is added just under half a unit of the last bit that stays, and one more
    if that bit is 1; then the rest is cut off. For a number below 2^-14, float16's last bit is worth as much as that of
    0.5 in float32, so that adding 0.5 rounds it.
    """
    lanes = vector.type.count
    longs, shorts = ir.VectorType(INT32, lanes), ir.VectorType(INT16, lanes)
    if HAS_HALF:
        return builder.bitcast(builder.fptrunc(vector, ir.VectorType(ir.HalfType(), lanes)), shorts)
    whole = partial(same, INT32, lanes)
    bits = builder.bitcast(vector, longs)
    magnitude = builder.and_(bits, whole(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, whole(13)), whole(1))
    rounded = builder.add(builder.add(magnitude, whole(0x0FFF)), odd)
    normal = builder.lshr(builder.sub(rounded, whole(112 << 23)), whole(13))
    half = same(FLOAT, lanes, 0.5)
    small = builder.bitcast(builder.fadd(builder.bitcast(magnitude, vector.type), half), longs)
    small = builder.sub(small, builder.bitcast(half, longs))
    beyond = builder.select(builder.icmp_unsigned(">", magnitude, whole(0x7F800000)), whole(0x7E00), whole(0x7C00))
    result = builder.select(builder.icmp_unsigned("<", magnitude, whole(113 << 23)), small, normal)
    result = builder.select(builder.icmp_unsigned("<", rounded, whole(143 << 23)), result, beyond)
    sign = builder.lshr(builder.and_(bits, whole(0x80000000)), whole(16))
    return builder.trunc(builder.or_(result, sign), shorts)


def is_of_halves(pointer):
    """Whether an address points to float16 (to their bits)."""
    return pointer.type.pointee == INT16


def read(builder, pointer, mask=None):
    """LANES float32 from an address of floats or halves; lanes where a mask is false are not read, but 0."""
    if not is_of_halves(pointer):
        return load(builder, pointer) if mask is None else masked_load(builder, pointer, mask)
    shorts = ir.VectorType(INT16, LANES)
    if mask is None:
        return from_half(builder, load(builder, pointer, shorts, align=2))
    return from_half(builder, masked_load(builder, pointer, mask, same(INT16, LANES, 0)))


def write(builder, vector, pointer, mask=None):
    """Write a vector, or only the lanes where a mask is true, to an address of floats or halves."""
    if is_of_halves(pointer):
        vector = to_half(builder, vector)
    if mask is None:
        store(builder, vector, pointer)
    else:
        masked_store(builder, vector, pointer, mask)


def fma(builder, a, b, c):
    """a * b + c, of floats or of vectors lane by lane; rounded once where HAS_FMA, else twice."""
    kind = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
    return call(builder, f"llvm.{'fma' if HAS_FMA else 'fmuladd'}.{kind}", a.type, [a, b, c])


def lanes_below(builder, count, width=LANES):
    """A mask of `width` lanes, true where the lane's number is below count, which must fit an int32."""
    limit = broadcast(builder, builder.trunc(count, INT32), width)
    return builder.icmp_signed("<", ir.Constant(limit.type, list(range(width))), limit)


def masked_load(builder, pointer, mask, otherwise=None):
    """As many elements as the mask has lanes; where it is false nothing is read: `otherwise`'s lane, or zero."""
    width = mask.type.count
    if otherwise is None:
        otherwise = same(FLOAT, width, 0.0)
    vector, align = otherwise.type, ir.Constant(INT32, 2 if otherwise.type.element == INT16 else 4)
    address = builder.bitcast(pointer, vector.as_pointer())
    return call(builder, f"llvm.masked.load.{_suffix(vector)}.p0", vector, [address, align, mask, otherwise])


def masked_store(builder, value, pointer, mask):
    address = builder.bitcast(pointer, value.type.as_pointer())
    align = ir.Constant(INT32, 2 if value.type.element == INT16 else 4)
    name = f"llvm.masked.store.{_suffix(value.type)}.p0"
    call(builder, name, ir.VoidType(), [value, address, align, mask])


def _suffix(vector):
    """The suffix of an LLVM intrinsic's name for a vector of float32 or int16: v16f32."""
    return f"v{vector.count}{'i16' if vector.element == INT16 else 'f32'}"


def reduce(builder, vector, combine):
    """Combine the LANES lanes of a vector to one: the lower half with the upper, until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        halves = (shuffle(builder, vector, range(start, start + width)) for start in (0, width))
        vector = combine(*halves)
    return builder.extract_element(vector, ir.Constant(INT32, 0))
