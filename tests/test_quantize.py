"""Packing and unpacking give the bits of the gguf package and of llama.cpp."""

import ctypes
import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastllm import quantize as module
from fastllm.packed import KINDS, Packed
from fastllm.quantize import PACK, PIECE, dequantize, quantize

UNPACKED = [name for name in KINDS if name != "F32"]
BLOCKS = ("Q8_0", "Q4_0", "Q4_1")


@pytest.fixture(scope="session")
def gguf():
    return pytest.importorskip("gguf")


def their_kind(gguf, name):
    return gguf.GGMLQuantizationType[name]


def random_bytes(kind, rows, columns, seed=0):
    """Any bytes are weights, but scales of NaN and infinity, which tell nothing apart."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, kind.row_bytes(columns)), np.uint8)
    if kind.name in ("F16", "BF16"):
        return data
    blocks = data.reshape(-1, kind.size)
    for offset in {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind.name, (0,)):
        scales = rng.standard_normal(len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return data


def test_the_example_in_the_docstring():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", UNPACKED)
def test_unpacking_equals_theirs(gguf, name):
    data = random_bytes(KINDS[name], 7, 768)
    ours = dequantize(Packed(data, KINDS[name]))
    theirs = gguf.quants.dequantize(data, their_kind(gguf, name))
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", ["F16", "BF16", *BLOCKS])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_packing_equals_theirs(gguf, name, scale):
    rng = np.random.default_rng(1)
    array = (rng.standard_normal((50, 96)) * scale).astype(np.float32)
    array[3] = 0
    array[4] = -array[4].max()
    array[6] = np.arange(96) - 40.5
    # With scales of 1 for Q8_0, Q4_0 and Q4_1, halves are ties; and the number below a half goes down.
    array[5] = np.concatenate([np.arange(32) - 8.5, np.arange(32) / 2 - 8, np.arange(32) / 2])
    array[5, [0, 32, 95]] = 127, -8, 15
    array[5, 1] = np.nextafter(np.float32(0.5), np.float32(0))
    theirs = gguf.quants.quantize(array, their_kind(gguf, name)).view(np.uint8)
    np.testing.assert_array_equal(quantize(array, name).data, theirs)


@pytest.mark.parametrize("name", BLOCKS)
@given(block=arrays.arrays(np.float32, (1, 32), elements=st.floats(-60000, 60000, width=32)))
@settings(max_examples=200)
def test_packing_any_block_equals_theirs(gguf, name, block):
    with np.errstate(over="ignore"):  # of 1 / d, which theirs takes as it comes
        is_plain = np.isfinite(1 / np.where(block == 0, 1, block)).all() and np.ptp(block) > 1e-34
    if is_plain:
        with np.errstate(all="ignore"):
            theirs = gguf.quants.quantize(block, their_kind(gguf, name))
        np.testing.assert_array_equal(quantize(block, name).data, theirs)


@pytest.mark.parametrize("name", BLOCKS)
def test_packing_equals_llama_cpp(name):
    """Its reference in C; the gguf package is a translation of it."""
    llama_cpp = pytest.importorskip("llama_cpp")
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    found = [path for name in names if (path := Path(llama_cpp.__file__).parent / "lib" / name).exists()]
    if not found:
        pytest.skip("llama_cpp has its library elsewhere")
    library = ctypes.CDLL(str(found[0]))
    array = np.random.default_rng(2).standard_normal((40, 1024), np.float32)
    kind = KINDS[name]
    theirs = np.zeros((40, kind.row_bytes(1024)), np.uint8)
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    function(kind.number, array.ctypes.data, theirs.ctypes.data, 0, *array.shape, None)
    np.testing.assert_array_equal(quantize(array, name).data, theirs)


def test_a_matrix_of_several_pieces():
    array = np.random.default_rng(3).standard_normal((3 * PIECE // 1024 + 5, 1024), np.float32)
    packed = quantize(array, "Q8_0")
    for row in 0, PIECE // 1024, len(array) - 1:
        np.testing.assert_array_equal(packed.data[row : row + 1], quantize(array[row : row + 1], "Q8_0").data)
        one = dequantize(Packed(packed.data[row : row + 1], packed.kind))
        np.testing.assert_array_equal(dequantize(packed)[row : row + 1], one)


@pytest.mark.parametrize("name", PACK)
def test_what_was_unpacked_packs_to_itself(name):
    array = np.random.default_rng(4).standard_normal((9, 64), np.float32)
    once = dequantize(quantize(array, name))
    error = {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q4_1": 1 / 15}[name]
    assert np.abs(once - array).max() <= error * np.abs(array).max()
    if name in ("F32", "F16", "BF16"):
        np.testing.assert_array_equal(dequantize(quantize(once, name)), once)


def test_bfloat16_rounds_ties_to_even_and_keeps_any_nan():
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x7FFFFFFF, 0xFF800001]], np.uint32)
    packed = quantize(bits.view(np.float32), "BF16").data.view(np.uint16)
    np.testing.assert_array_equal(packed, [[0x3F80, 0x3F82, 0x3F81, 0x7FFF, 0xFFC0]])


def test_float32_is_a_view():
    array = np.ones((3, 4), np.float32)
    assert np.shares_memory(quantize(array, "F32").data, array)


@pytest.mark.parametrize("shape", [(0, 32), (5, 0), (0, 0)])
@pytest.mark.parametrize("name", PACK)
def test_empty_matrices(shape, name):
    assert dequantize(quantize(np.empty(shape, np.float32), name)).shape == shape


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_too_small_for_a_scale_become_zeros(name):
    array = np.full((1, 32), 1e-41, np.float32)
    array[0, 0] = 0
    np.testing.assert_array_equal(dequantize(quantize(array, name)), np.zeros((1, 32)))


@pytest.mark.parametrize(
    ("array", "kind", "received"),
    [
        (np.ones((2, 33)), "Q8_0", "multiple of 32 columns; got shape (2, 33)"),
        (np.ones(32), "Q8_0", "got shape (32,)"),
        (np.ones((1, 32)), "Q6_K", "got 'Q6_K'"),
        (np.full((1, 32), np.nan), "Q8_0", "rows 0 to 0"),
        (np.full((1, 32), np.inf), "Q4_0", "rows 0 to 0"),
        (np.full((1, 32), -np.inf), "Q4_1", "rows 0 to 0"),
        (np.full((1, 32), 1e7), "Q8_0", "rows 0 to 0"),
        (np.full((1, 32), 1e6), "Q4_0", "rows 0 to 0"),
        (np.full((1, 32), 1e5), "Q4_1", "rows 0 to 0"),
        (np.full((1, 32), 1e5), "F16", "rows 0 to 0"),
        (np.full((1, 32), 3.4028235e38), "BF16", "rows 0 to 0"),
        *((np.full((1, 32), -1e39), kind, "rows 0 to 0") for kind in ("F32", "F16", "BF16", "Q8_0")),
    ],
)
def test_what_a_kind_can_not_hold_is_refused(array, kind, received):
    with pytest.raises(ValueError, match="must") as caught:
        quantize(array, kind)
    assert received in str(caught.value)
