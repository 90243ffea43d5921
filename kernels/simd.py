"""Vectors of float32 inside Numba kernels: the type `vector`, pointers, and a few operations on both.

Numba vectorises simple loops by itself (LLVM does). The matrix product needs more: to say which values stay
in registers. Here a Numba type stands for LLVM's `<LANES x float>`, and each function below becomes one
instruction or a few. LLVM lowers the generic type to AVX-512, AVX2, SSE or NEON alike; nothing here is x86's.

    LANES      floats in a vector: 16 with AVX-512, 8 with AVX, else 4
    pointer    address of an array's first element; p[i] reads without Numba's test for a negative index,
               which alone cost 20% of the matrix product
    advance    address of the n-th float from p
    tile       the heart of the matrix product: see its docstring
    transpose  a LANES x LANES block, in registers
    copy       one vector from one address to another

Loads and stores assume an alignment of 4 bytes: rows of odd length are not aligned to more, and on the CPUs
of the last ten years an unaligned load of aligned data costs nothing.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "FLOATS",
    "LANES",
    "PROBE_SUMS",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "add_column",
    "advance",
    "advance_optional",
    "bits_of_float",
    "copy",
    "copy_column",
    "float_from_bits",
    "fma",
    "is_null",
    "larger",
    "multiply_add_rounds",
    "nearest",
    "null",
    "pointer",
    "tile",
    "transpose",
]


def _lanes() -> int:
    """The widest vectors of the CPU that Numba compiles for: this one's, unless NUMBA_CPU_FEATURES says otherwise."""
    if config.CPU_FEATURES is not None:
        features = dict.fromkeys(config.CPU_FEATURES.replace("+", "").split(","), True)
    else:
        features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx") else 4


LANES = _lanes()

# The register tile of the matrix product. Its accumulators, one row of B and a broadcast of A must fit the
# registers: 8*2+2+1 = 19 of 32 (AVX-512), 6*2+2+1 = 15 of 16 (AVX2), 8*2+2+1 of 32 (NEON; SSE spills).
# Twelve or more accumulators hide the latency of a multiply-add; fewer rows waste less at the edges.
TILE_ROWS, TILE_VECTORS = {16: (8, 2), 8: (6, 2), 4: (8, 2)}[LANES]
TILE_COLUMNS = TILE_VECTORS * LANES
PREFETCH_STEPS = 4  # a power of two
PROBE_SUMS = 12  # accumulators of `multiply_add_rounds`: more than a multiply-add's latency, fewer than registers

_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_COLUMN = ir.VectorType(_FLOAT, TILE_ROWS)
FLOATS = types.CPointer(types.float32)


def _at(builder, pointer, *offsets):
    for offset in offsets:
        pointer = builder.gep(pointer, [offset])
    return pointer


def _load(builder, pointer):
    value = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    value.align = 4
    return value


def _store(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer())).align = 4


def _broadcast(builder, scalar):
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _call(builder, name, result, arguments):
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _prefetch(builder, pointer):
    """Bring the line of an address to the first cache, to be written."""
    byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    write, keep, data = (ir.Constant(ir.IntType(32), value) for value in (1, 3, 1))
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, write, keep, data])


def _fma(builder, a, b, c):
    return _call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, [a, b, c])


def _column_masks(builder, columns):
    """For each vector of a tile's row: the lanes that lie within `columns`."""
    lanes = ir.VectorType(_INT, LANES)
    one = builder.insert_element(ir.Constant(lanes, ir.Undefined), columns, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    limit = builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), zeros)
    return [
        builder.icmp_signed("<", ir.Constant(lanes, list(range(v * LANES, (v + 1) * LANES))), limit)
        for v in range(TILE_VECTORS)
    ]


def _masked_load(builder, pointer, mask):
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    address = builder.bitcast(pointer, _VECTOR.as_pointer())
    name = f"llvm.masked.load.v{LANES}f32.p0"
    return _call(builder, name, _VECTOR, [address, ir.Constant(ir.IntType(32), 4), mask, zero])


def _masked_store(builder, value, pointer, mask):
    address = builder.bitcast(pointer, _VECTOR.as_pointer())
    name = f"llvm.masked.store.v{LANES}f32.p0"
    _call(builder, name, ir.VoidType(), [value, address, ir.Constant(ir.IntType(32), 4), mask])


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
    """Address of the first element of a float32 array."""

    def codegen(context, builder, signature, arguments):
        return cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data

    return FLOATS(array), codegen


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
def advance(typingctx, pointer, offset):
    """Address of the offset-th float from pointer."""

    def codegen(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return FLOATS(FLOATS, types.int64), codegen


@intrinsic
def advance_optional(typingctx, pointer, offset):
    """As advance, but null stays null."""

    def codegen(context, builder, signature, arguments):
        pointer, offset = arguments
        none = ir.Constant(pointer.type, None)
        return builder.select(builder.icmp_unsigned("==", pointer, none), none, builder.gep(pointer, [offset]))

    return FLOATS(FLOATS, types.int64), codegen


@intrinsic
def copy(typingctx, to, source):
    """Copy LANES floats."""

    def codegen(context, builder, signature, arguments):
        _store(builder, _load(builder, arguments[1]), arguments[0])
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS), codegen


@intrinsic
def copy_column(typingctx, to, source):
    """Copy TILE_ROWS floats: one step of a packed panel of A."""

    def codegen(context, builder, signature, arguments):
        to, source = (builder.bitcast(address, _COLUMN.as_pointer()) for address in arguments)
        value = builder.load(source)
        value.align = 4
        builder.store(value, to).align = 4
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS), codegen


@intrinsic
def add_column(typingctx, to, source):
    """Add TILE_ROWS floats to others."""

    def codegen(context, builder, signature, arguments):
        to, source = (builder.bitcast(address, _COLUMN.as_pointer()) for address in arguments)
        value, old = builder.load(source), builder.load(to)
        value.align = old.align = 4
        builder.store(builder.fadd(old, value), to).align = 4
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS), codegen


@intrinsic
def transpose(typingctx, to, to_row, source, source_row):
    """Transpose a block of LANES x LANES floats: to[k * to_row + r] = source[r * source_row + k].

    log2(LANES) rounds of a perfect shuffle: each interleaves row i with row i + LANES/2.
    """

    def codegen(context, builder, signature, arguments):
        to, to_row, source, source_row = arguments
        low = [i // 2 + LANES * (i % 2) for i in range(LANES)]
        high = [LANES // 2 + i for i in low]
        index = ir.VectorType(ir.IntType(32), LANES)
        rows = []
        for _ in range(LANES):
            rows.append(_load(builder, source))
            source = _at(builder, source, source_row)
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[: LANES // 2], rows[LANES // 2 :], strict=True)
            rows = [
                builder.shuffle_vector(first, second, ir.Constant(index, order))
                for first, second in pairs
                for order in (low, high)
            ]
        for row in rows:
            _store(builder, row, to)
            to = _at(builder, to, to_row)
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64, FLOATS, types.int64), codegen


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
            total.add_incoming(ir.Constant(_VECTOR, [float(number)] * LANES), entry)
            total.add_incoming(result, loop)
        builder.position_at_end(after)
        whole = new[0]
        for result in new[1:]:
            whole = builder.fadd(whole, result)
        _store(builder, whole, out)
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64), codegen


@intrinsic
def tile(typingctx, c, c_row, a, a_row, a_step, b, depth, rows, columns, addend, addend_row, bias):
    """c = a @ b + addend + bias for one register tile of TILE_ROWS x TILE_COLUMNS.

    c       address; row r starts at c + r * c_row; the first `rows` rows and `columns` columns are written
    a       element (r, k) at a + r * a_row + k * a_step; all TILE_ROWS rows are read, so rows beyond the
            matrix must be readable: the caller lets them point at a row that exists
    b       packed panel: TILE_COLUMNS floats for each k, zeros beyond the matrix
    addend  as c, or null; often c itself, to accumulate
    bias    one row, or null

    All of c stays in registers over the loop in k: TILE_ROWS broadcasts of a, TILE_VECTORS loads of b and
    TILE_ROWS * TILE_VECTORS multiply-adds a step.
    """

    def codegen(context, builder, signature, arguments):
        c, c_row, a, a_row, a_step, b, depth, rows, columns, addend, addend_row, bias = arguments
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        one = ir.Constant(_INT, 1)
        entry = builder.block
        loop = builder.append_basic_block("tile.loop")
        after = builder.append_basic_block("tile.after")
        # Rows in groups of three, each group with one address: x86 addresses base, base + row and
        # base + 2 * row, so a tile of 8 rows takes 3 registers for a, not 8.
        twice = builder.add(a_row, a_row)
        groups = [a]
        for _ in range(3, TILE_ROWS, 3):
            groups.append(_at(builder, groups[-1], twice, a_row))
        builder.cbranch(builder.icmp_signed(">", depth, ir.Constant(_INT, 0)), loop, after)

        builder.position_at_end(loop)
        k = builder.phi(_INT)
        b_now = builder.phi(b.type)
        a_now = [builder.phi(a.type) for _ in groups]
        sums = [[builder.phi(_VECTOR) for _ in range(TILE_VECTORS)] for _ in range(TILE_ROWS)]
        _prefetch_tile(builder, c, c_row, k)
        b_row = [_load(builder, _at(builder, b_now, ir.Constant(_INT, v * LANES))) for v in range(TILE_VECTORS)]
        new = []
        for r in range(TILE_ROWS):
            base = a_now[r // 3]
            address = (base, _at(builder, base, a_row), _at(builder, base, twice))[r % 3]
            x = _broadcast(builder, builder.load(address))
            new.append([_fma(builder, x, b_row[v], sums[r][v]) for v in range(TILE_VECTORS)])
        k_next = builder.add(k, one)
        b_next = _at(builder, b_now, ir.Constant(_INT, TILE_COLUMNS))
        a_next = [_at(builder, base, a_step) for base in a_now]
        builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)
        for phi, start, following in [
            (k, ir.Constant(_INT, 0), k_next),
            (b_now, b, b_next),
            *zip(a_now, groups, a_next, strict=True),
            *[(sums[r][v], zero, new[r][v]) for r in range(TILE_ROWS) for v in range(TILE_VECTORS)],
        ]:
            phi.add_incoming(start, entry)
            phi.add_incoming(following, loop)

        builder.position_at_end(after)
        totals = [[builder.phi(_VECTOR) for _ in range(TILE_VECTORS)] for _ in range(TILE_ROWS)]
        for r in range(TILE_ROWS):
            for v in range(TILE_VECTORS):
                totals[r][v].add_incoming(zero, entry)
                totals[r][v].add_incoming(new[r][v], loop)
        _finish(builder, totals, c, c_row, rows, columns, addend, addend_row, bias)
        return context.get_dummy_value()

    floats, size = FLOATS, types.int64
    signature = types.void(floats, size, floats, size, size, floats, size, size, size, floats, size, floats)
    return signature, codegen


def _prefetch_tile(builder, c, c_row, k):
    """In step k of a tile's loop, bring one line of c into the first cache, where the end of the loop wants it.

    All at once, before the loop, they would hold up the loads of b: that cost 4% of a large product. So there is one
    each PREFETCH_STEPS steps.
    """
    number = builder.lshr(k, ir.Constant(_INT, PREFETCH_STEPS.bit_length() - 1))
    r = builder.udiv(number, ir.Constant(_INT, TILE_VECTORS))
    v = builder.urem(number, ir.Constant(_INT, TILE_VECTORS))
    last = ir.Constant(_INT, TILE_ROWS - 1)
    r = builder.select(builder.icmp_unsigned("<", r, last), r, last)
    row = builder.mul(r, c_row)
    _prefetch(builder, _at(builder, c, builder.add(row, builder.mul(v, ir.Constant(_INT, LANES)))))


def _finish(builder, totals, c, c_row, rows, columns, addend, addend_row, bias):
    """The end of `tile`: add what is to be added and store, within the bounds of the matrix."""
    is_whole = builder.icmp_signed(">=", columns, ir.Constant(_INT, TILE_COLUMNS))
    with builder.if_else(is_whole) as (whole, edge):
        with whole:
            _finish_rows(builder, totals, c, c_row, rows, addend, addend_row, bias, None)
        with edge:
            masks = _column_masks(builder, columns)
            _finish_rows(builder, totals, c, c_row, rows, addend, addend_row, bias, masks)


def _finish_rows(builder, totals, c, c_row, rows, addend, addend_row, bias, masks):
    null_pointer = ir.Constant(c.type, None)

    def add_row(row, source):
        """row + the row at source, or row itself where source is null."""
        before = builder.block
        with builder.if_then(builder.icmp_unsigned("!=", source, null_pointer)):
            added = []
            for v in range(TILE_VECTORS):
                address = _at(builder, source, ir.Constant(_INT, v * LANES))
                loaded = _masked_load(builder, address, masks[v]) if masks else _load(builder, address)
                added.append(builder.fadd(row[v], loaded))
            inside = builder.block
        chosen = [builder.phi(_VECTOR) for _ in row]
        for phi, old, new in zip(chosen, row, added, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, inside)
        return chosen

    for r, total in enumerate(totals):
        number = ir.Constant(_INT, r)
        with builder.if_then(builder.icmp_signed("<", number, rows)):
            moved = _at(builder, addend, builder.mul(number, addend_row))
            is_null = builder.icmp_unsigned("==", addend, null_pointer)
            row = add_row(total, builder.select(is_null, null_pointer, moved))
            row = add_row(row, bias)
            to = _at(builder, c, builder.mul(number, c_row))
            for v in range(TILE_VECTORS):
                address = _at(builder, to, ir.Constant(_INT, v * LANES))
                if masks:
                    _masked_store(builder, row[v], address, masks[v])
                else:
                    _store(builder, row[v], address)
