"""Small training steps run on the number of threads that is fastest, and the bits are the same on any."""

import time

import numba
import numpy as np
import pytest

import fastllm
from fastllm.datasets import Example, OneBatch, pack
from fastllm.kernels import jit
from fastllm.training import Trainer, threads
from fastllm.training.threads import StepThreads

TOKENS = 20


class Machine:
    """A clock that moves on by what a step takes on the present number of threads, and Numba's number of them."""

    def __init__(self, most, seconds):
        self.count, self.now, self.seconds, self.counts = most, 0.0, seconds, []

    def run(self, step_threads, steps, operations=1e6, spread=0.0):
        rng = np.random.default_rng(0)
        for _ in range(steps):
            with step_threads.step(operations, TOKENS):
                self.counts.append(self.count)
                self.now += self.seconds(self.count) * (1 + spread * rng.standard_normal())


@pytest.fixture
def machine(monkeypatch):
    def make(most, seconds):
        machine = Machine(most, seconds)
        monkeypatch.setattr(jit, "get_num_threads", lambda: machine.count)
        monkeypatch.setattr(jit, "set_num_threads", lambda count: setattr(machine, "count", count))
        monkeypatch.setattr(time, "perf_counter", lambda: machine.now)
        return machine

    return make


@pytest.mark.parametrize("most", [2, 3, 6, 64])
@pytest.mark.parametrize("best", ["all", "half", "one"])
def test_the_fastest_number_is_found_and_kept(machine, most, best):
    wanted = {"all": most, "half": most // 2, "one": 1}[best]
    here = machine(most, lambda count: 1e-3 * 1.5 ** abs(np.log2(count / wanted)))
    step_threads = StepThreads()
    here.run(step_threads, 1000, spread=0.05)
    assert step_threads.count == wanted
    here.run(step_threads, 20_000, spread=0.05)
    assert step_threads.count == wanted
    assert np.mean(np.array(here.counts[1000:]) == wanted) > 0.9
    assert here.count == most


def test_it_follows_a_machine_that_changes(machine):
    near, far = {1: 1.2e-3, 2: 0.8e-3}, {1: 1.3e-3, 2: 1.8e-3}
    now = near
    here = machine(2, lambda count: now[count])
    step_threads = StepThreads()
    here.run(step_threads, 500)
    assert step_threads.count == 2
    for _ in range(3):
        now = far
        here.run(step_threads, 100)  # slower steps are noticed at once
        assert step_threads.count == 1
        now = near
        here.run(step_threads, threads.SHORT_PAUSE + 100)
        assert step_threads.count == 2


def test_interrupted_steps_do_not_count(machine):
    rng = np.random.default_rng(1)
    here = machine(2, lambda count: 1e-3 / count + 0.5 * (rng.random() < 0.05))
    here.run(step_threads := StepThreads(), 10_000)
    assert step_threads.count == 2


def test_large_steps_run_on_all_threads(machine):
    here = machine(4, lambda count: 1e-3 * count)
    here.run(StepThreads(), 1000, operations=4 * threads.SMALL)
    assert set(here.counts) == {4}


def test_numbers_of_threads_are_halves_and_never_more_than_there_are(machine):
    here = machine(6, lambda count: 1e-3 * count)
    here.run(StepThreads(), 2000)
    assert set(here.counts) == {6, 3, 1, 2}


def test_another_number_of_threads_begins_anew(machine):
    here = machine(4, lambda count: 1e-3 * count)
    here.run(step_threads := StepThreads(), 500)
    assert step_threads.count == 1
    here.count = 8
    here.run(step_threads, 1)
    assert here.counts[-1] == step_threads.count == here.count == 8


def test_an_error_leaves_the_number_of_threads_as_it_was(machine):
    here = machine(2, lambda count: 1e-3 * count)
    here.run(step_threads := StepThreads(), 500)

    def interrupted():
        with step_threads.step(1e6, TOKENS):
            assert here.count == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert here.count == 2


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS == 1, reason="needs two threads")
def test_a_run_whose_steps_change_threads_has_the_same_bits(monkeypatch):
    monkeypatch.setattr(threads, "WARM_UP", 1)
    monkeypatch.setattr(threads, "TURN", 2)
    monkeypatch.setattr(threads, "PAUSE", 3)

    def train(callback):
        config = fastllm.ModelConfig(vocab_size=97, width=64, hidden=128, layers=2, heads=2, context=64)
        model = fastllm.Model(config, seed=2)
        ids = np.arange(60, dtype=np.int32)
        batch = OneBatch(pack([Example(ids, ids + 1), Example(ids[:7], ids[1:8])]))
        optimizer, schedule = fastllm.Adam(model), fastllm.Schedule(peak=1e-3)
        Trainer(model, optimizer, batch, schedule, steps=60, callbacks=[callback]).train()
        return model.parameters.flat.tobytes()

    before, chosen, set_num_threads = numba.get_num_threads(), [], numba.set_num_threads
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(jit, "set_num_threads", lambda count: (chosen.append(count), set_num_threads(count)))
        changing = train(lambda done: seen.append(numba.get_num_threads()))
    assert min(chosen) < before  # some steps ran on fewer
    assert set(seen) == {before}  # and what is called after a step on all
    try:
        numba.set_num_threads(1)
        assert train(lambda done: None) == changing
    finally:
        numba.set_num_threads(before)
