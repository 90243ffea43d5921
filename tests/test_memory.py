"""Where arrays begin in memory."""

import numpy as np
import pytest

import fastllm
from fastllm.memory import CACHE_LINE, PAGE, aligned


def line(array):
    return array.ctypes.data % PAGE // CACHE_LINE


@pytest.mark.parametrize("shape", [0, 1, 7, (3, 5), (0, 4), 40_000, (300, 301), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "uint8"])
def test_arrays_begin_at_a_cache_line(shape, dtype):
    for zeroed in (False, True):
        array = aligned(shape, dtype, zeroed)
        assert array.shape == ((shape,) if isinstance(shape, int) else shape)
        assert array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.writeable
        assert not array.size or array.ctypes.data % CACHE_LINE == 0
        assert not (zeroed and array.any())
        array[...] = 1  # all of it is its own


def test_large_arrays_begin_at_different_lines_of_a_page():
    arrays = [aligned(100_000, np.float32) for _ in range(16)]
    assert len({line(array) for array in arrays}) == 16


def test_an_array_too_large_for_memory():
    """An address space has no room for it, whatever the machine's memory is."""
    with pytest.raises(MemoryError, match=r"arrays must fit into memory; got one more of 4.5e\+06 GB; use a smaller"):
        aligned((1 << 25, 1 << 25), np.float32)


@pytest.mark.parametrize("kind", [fastllm.AdamW, fastllm.Adam, fastllm.Lion, fastllm.SGD])
def test_what_an_optimizer_goes_through_stands_apart(kind):
    model = fastllm.Model(fastllm.preset("nano", vocab_size=50))
    optimizer = kind(model)
    arrays = [model.parameters.flat, model.gradients.flat, *optimizer.state().values()][:-2]
    assert all(array.ctypes.data % CACHE_LINE == 0 for array in arrays)
    assert len({line(array) for array in arrays}) == len(arrays)


def test_caches_begin_at_cache_lines():
    model = fastllm.Model(fastllm.preset("nano", vocab_size=50))
    cache = model.new_cache()
    model.prefill(np.arange(60) % 50, None, cache)
    assert all(layer.ctypes.data % CACHE_LINE == 0 for layer in (*cache.keys, *cache.values))
