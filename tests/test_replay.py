"""Calls that are done again: kernels get the arguments they had, whatever these are."""

import copy
import sys
import threading
import time

import numpy as np
import pytest

from fastllm import kernels
from fastllm.kernels import Replay, rope_forward
from fastllm.kernels.cases import CASES, with_scratch
from fastllm.kernels.jit import kernel, prange
from fastllm.kernels.replay import _entries


@kernel
def all_kinds(out, floats, halves, ids, cube, nothing, pair, numbers, number, one, small, is_so, long):
    out[0] += floats[1, 2] + halves[1] + ids[0] + cube[1, 0, 1] + nothing.size + nothing.shape[0]
    out[1] += pair[0][1, 0] + pair[1].shape[0] + numbers[0] + numbers[1]
    out[2] = number
    out[3] = one
    out[4] = small
    out[5] = 1 if is_so else -1
    out[6] = long
    out[7] = floats.strides[0] + cube.strides[0] * 1000 + cube.itemsize + ids.size


@kernel(parallel=True)
def doubled(out, x):
    for i in prange(out.shape[0]):
        out[i] = 2 * x[i]


@kernel
def count(out, x):
    out[0] = x.ndim


@kernel
def refused(out, limit):
    if out[0] >= limit:
        raise ValueError("too large")
    out[0] += 1


def arguments():
    frozen = np.arange(6, dtype=np.int32)
    frozen.flags.writeable = False
    return (
        np.zeros(8), np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3, dtype=np.uint16), frozen + 40,
        np.arange(24, dtype=np.float64).reshape(2, 3, 4), np.empty((0, 5), np.float32),
        (np.arange(4, dtype=np.uint8).reshape(2, 2), frozen[:2]), (3, -4), -2.5, np.float32(-0.1), -7, True, 1 << 40,
    )  # fmt: skip


def test_arguments_of_all_kinds():
    given, same = arguments(), arguments()
    all_kinds(*given)
    replay = Replay([(all_kinds, given)])
    for _ in range(3):
        replay()
        all_kinds(*same)
    all_kinds(*same)
    np.testing.assert_array_equal(given[0], same[0])
    assert given[0][2] == -2.5 and given[0][3] == np.float32(-0.1) and given[0][6] == 1 << 40


def test_calls_follow_one_another_and_read_what_is_there():
    x, y, z = np.ones(40000, np.float32), np.empty(40000, np.float32), np.empty(40000, np.float32)
    doubled(y, x)
    replay = Replay([(doubled, (y, x)), (doubled, (z, y)), (doubled, (x, z))])
    for _ in range(2):
        replay()
    np.testing.assert_array_equal(x, np.float32(64))
    x[...] = 3
    replay()
    np.testing.assert_array_equal(z, np.float32(12))


def test_types_are_told_apart():
    """The same kernel with other types is other machine code."""
    outs = [np.zeros(1, kind) for kind in (np.float32, np.float64, np.int32)]
    for out in outs:
        refused(out, 10)
        refused(out, 10.0)
    replay = Replay([(refused, (out, limit)) for out in outs for limit in (10, 10.0, np.float32(10))])
    replay()
    assert [out[0] for out in outs] == [5, 5, 5]
    assert len({address for (compiled, _), address in _entries.items() if compiled is refused}) == 9


def test_dimensions_are_told_apart():
    outs = [np.zeros(1), np.zeros(1)]
    Replay([(count, (out, np.zeros(shape))) for out, shape in zip(outs, (4, (2, 2)), strict=True)])()
    assert [out[0] for out in outs] == [1, 2]


def test_a_kernel_that_another_one_stands_for():
    qkv = np.arange(8, dtype=np.float32).reshape(1, 8)
    cos, sin = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    given = qkv, cos, sin, np.ones(1, np.int32), 1, True
    expected = qkv.copy()
    rope_forward(*given)
    rope_forward(expected, *given[1:])
    Replay([(rope_forward, given)])()
    rope_forward(expected, *given[1:])
    np.testing.assert_array_equal(qkv, expected)


def test_what_a_kernel_raises():
    out, other = np.zeros(1), np.zeros(1)
    refused(out, 2)
    replay = Replay([(refused, (out, 2)), (refused, (other, 9))])
    replay()
    with pytest.raises(ValueError, match="too large"):
        replay()
    assert out[0] == 2 and other[0] == 1


def test_what_words_cannot_stand_for():
    out = np.zeros((4, 4), np.float32)
    with pytest.raises(TypeError, match="C-contiguous arrays, numbers and tuples"):
        Replay([(doubled, (out[:, 0], out[:, 1]))])


def test_no_calls():
    Replay([])()


@pytest.mark.parametrize(
    ("case", "size"),
    [pytest.param(case, size, id=f"{case.kernel}-{i}") for case in CASES.values() for i, size in enumerate(case.sizes)],
)
def test_every_kernel_is_done_again(case, size):
    inputs = with_scratch(case.build(np.random.default_rng(0), **size), kernels)
    kernel = getattr(kernels, case.kernel)
    given, expected = copy.deepcopy(inputs), copy.deepcopy(inputs)
    kernel(*expected.values())
    Replay([(kernel, tuple(given.values()))])()
    for name in (*case.written, *case.updated):
        assert given[name].tobytes() == expected[name].tobytes(), name


@pytest.fixture
def long_turns():
    """Threads that run Python are not asked to let others do so."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


def test_parallel_loops_do_not_wait_for_python(long_turns):
    """Another thread runs Python as soon as the calls have begun, until the last of them is done."""
    out, x, last = np.zeros(40_000, np.float32), np.ones(40_000, np.float32), np.zeros(1, np.float32)
    calls = Replay([(doubled, (out, x))] * 5000 + [(doubled, (last, x[:1]))])
    calls()
    last[:] = 0
    gate, is_late = threading.Event(), []

    def run_python():
        gate.wait()
        end = time.monotonic() + 20
        while not last[0]:
            if time.monotonic() > end:
                is_late.append(True)
                break

    other = threading.Thread(target=run_python)
    other.start()
    gate.set()
    calls()
    other.join()
    assert last[0] == 2
    assert not is_late
