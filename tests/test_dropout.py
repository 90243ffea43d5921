"""Dropout: the generator's published numbers, its statistics, and that it can be repeated."""

import numpy as np
import pytest

from fastllm import kernels
from fastllm.kernels import reference


@pytest.fixture(params=[kernels, reference], ids=["kernel", "twin"])
def backend(request):
    return request.param


def draw(seed, row=0):
    return np.array([seed, row], np.uint64)


def dropped(backend, x, probability, seed, offset, row=0):
    out = np.full_like(x, np.nan)
    backend.dropout_forward(out, x, probability, draw(seed, row), offset)
    return out


def test_first_numbers_of_splitmix64(backend):
    """For seed 1234567 the generator gives, in units of 2^64: 0.350, 0.174, 0.532, 0.249, 0.890.

    They are 6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431 and
    16408922859458223821, as listed on rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
    """
    x = np.ones((1, 5), np.float32)
    np.testing.assert_array_equal(dropped(backend, x, 0.5, 1234567, 0), [[0, 0, 2, 0, 2]])
    np.testing.assert_array_equal(dropped(backend, x, 0.25, 1234567, 0) > 0, [[1, 0, 1, 0, 1]])


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_mean(backend, probability):
    x = np.ones((1000, 1000), np.float32)
    out = dropped(backend, x, probability, 7, 0)
    deviation = np.sqrt(probability * (1 - probability) / x.size)  # of the share that a fair coin would keep
    assert np.mean(out > 0) == pytest.approx(1 - probability, abs=4 * deviation)
    assert out.mean(dtype=np.float64) == pytest.approx(1, abs=4 * deviation / (1 - probability))


def test_neighbours_are_independent(backend):
    kept = dropped(backend, np.ones((1000, 1000), np.float32), 0.5, 7, 0) > 0
    assert np.mean(kept[:, 1:] == kept[:, :-1]) == pytest.approx(0.5, abs=0.002)  # four deviations
    assert np.mean(kept[1:] == kept[:-1]) == pytest.approx(0.5, abs=0.002)


def test_repeats_for_seed_and_offset(backend):
    x = np.random.default_rng(0).standard_normal((7, 65), dtype=np.float32)
    first = dropped(backend, x, 0.3, 7, 0)
    np.testing.assert_array_equal(dropped(backend, x, 0.3, 7, 0), first)
    assert (dropped(backend, x, 0.3, 8, 0) != first).any()
    # the rows from the third on, alone; offset counts elements
    np.testing.assert_array_equal(dropped(backend, x[2:], 0.3, 7, 0, row=2), first[2:])
    np.testing.assert_array_equal(dropped(backend, x[2:], 0.3, 7, 2 * 65), first[2:])


def test_backward_drops_the_same(backend):
    dout = np.random.default_rng(0).standard_normal((7, 65), dtype=np.float32)
    dx = np.full_like(dout, np.nan)
    backend.dropout_backward(dx, dout, 0.3, draw(7), 11)
    np.testing.assert_array_equal(dx, dropped(backend, dout, 0.3, 7, 11))


def test_kernel_and_twin_drop_the_same():
    x = np.ones((131, 130), np.float32)
    np.testing.assert_array_equal(dropped(kernels, x, 0.3, 7, 5) > 0, dropped(reference, x, 0.3, 7, 5) > 0)


def test_probability_zero_keeps_all(backend):
    x = np.random.default_rng(0).standard_normal((7, 65), dtype=np.float32)
    np.testing.assert_array_equal(dropped(backend, x, 0.0, 7, 0), x)
