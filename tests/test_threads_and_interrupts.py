"""Threads that share a model, or Numba's own layer of threads, take turns; Ctrl-C leaves an update whole."""

import os
import signal
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest

import fastllm
from fastllm import locking
from fastllm.datasets import TokenStream
from fastllm.interrupts import uninterrupted
from fastllm.kernels import jit

TOKENIZER = fastllm.ByteTokenizer()


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """As in a terminal; a process that is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def a_model(**changes):
    fields = {"vocab_size": 259, "layers": 2, "width": 32, "hidden": 48, "heads": 2, "context": 64}
    return fastllm.Model(fastllm.preset("nano", **{**fields, **changes}), seed=0)


def in_threads(works):
    """Run functions at once, each in a thread of its own; their results, or the first error."""
    results, begin = [None] * len(works), threading.Barrier(len(works))

    def run(i, work):
        begin.wait()
        try:
            results[i] = work()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i, work)) for i, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def test_texts_generated_in_threads_are_those_of_one_thread():
    model = a_model()
    prompts = ["a" * length for length in (1, 40, 7, 20)]
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 1}
    alone = [fastllm.generate(model, TOKENIZER, prompt, **options) for prompt in prompts]

    def serve(prompt):
        return [fastllm.generate(model, TOKENIZER, prompt, **options) for _ in range(20)]

    served = in_threads([lambda prompt=prompt: serve(prompt) for prompt in prompts])
    assert served == [[text] * 20 for text in alone]


def test_losses_in_threads_and_layers_made_anew_meanwhile():
    model = a_model()
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 259, (2, length)) for length in (3, 17, 64)]
    alone = [model.loss(batch, batch) for batch in batches]
    model.add_lora(rank=2)  # which adds nothing yet

    def change():
        adapter = model.adapter
        for _ in range(20):
            model.remove_adapter()
            model.set_adapter(adapter)

    def score(batch):
        return [model.loss(batch, batch) for _ in range(20)]

    *losses, _ = in_threads([*[lambda batch=batch: score(batch) for batch in batches], change])
    assert losses == [[loss] * 20 for loss in alone]


MODELS_OF_THEIR_OWN = """
import threading
import fastllm
from fastllm.compilation import Uses, compile_kernels

config = fastllm.preset("nano", vocab_size=259, layers=1, width=32, hidden=48, heads=2, context=16)
models = [fastllm.Model(config, seed=seed) for seed in range(2)]
optimizers = [fastllm.AdamW(model) for model in models]
compile_kernels(models[0], Uses(optimizers[0], measures=True, generates=True))
begin, done = threading.Barrier(2), []

def train(model, optimizer):
    begin.wait()
    for _ in range(100):
        model.zero_gradients()
        model.loss_and_gradients(range(9), range(1, 10))
        fastllm.clip_gradients(model, 1.0)
        optimizer.step(1e-3)
    done.append(fastllm.generate(model, fastllm.ByteTokenizer(), "a", max_tokens=5))

threads = [threading.Thread(target=train, args=pair) for pair in zip(models, optimizers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(done))
"""


@pytest.mark.parametrize("count", ["1", "2"])
def test_models_of_their_own_take_turns_where_the_layer_of_threads_wants_it(count):
    """Else it ends the process, also where it has but one thread."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": count}
    done = subprocess.run(
        [sys.executable, "-c", MODELS_OF_THEIR_OWN], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


@pytest.mark.parametrize(
    ("layer", "priority", "there", "expected"),
    [
        ("workqueue", None, "tbb omp", False),
        ("omp", None, "", True),  # Numba says that it is not there
        ("default", "tbb omp workqueue", "tbb", True),
        ("default", "tbb omp workqueue", "omp", True),
        ("default", "tbb omp workqueue", "", False),
        ("default", "tbb workqueue omp", "omp", False),
        ("threadsafe", None, "omp", True),
        ("forksafe", None, "omp", sys.platform != "linux"),
        ("forksafe", None, "tbb", True),
    ],
)
def test_whether_calls_may_overlap(monkeypatch, layer, priority, there, expected):
    def import_module(name):
        if name not in {f"numba.np.ufunc.{kind}pool" for kind in there.split()}:
            raise ImportError(name)

    monkeypatch.setattr(jit.importlib, "import_module", import_module)
    monkeypatch.setattr(numba.config, "THREADING_LAYER", layer)
    monkeypatch.setattr(numba.config, "THREADING_LAYER_PRIORITY", (priority or "tbb omp workqueue").split())
    assert jit.calls_may_overlap() == expected


def test_openmp_is_safe_to_fork_except_on_linux(monkeypatch):
    monkeypatch.setattr(jit, "_can_be_imported", lambda module: "omppool" in module)
    monkeypatch.setattr(numba.config, "THREADING_LAYER", "forksafe")
    found = {}
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        found[platform] = jit.calls_may_overlap()
    assert found == {"linux": False, "darwin": True, "win32": True}


def test_who_shares_a_lock(monkeypatch):
    """As well in a process that has been forked."""
    monkeypatch.setattr("fastllm.kernels.calls_may_overlap", lambda: True)
    free = [a_model(), a_model(), fastllm.Model(a_model().config, backend="numpy")]
    monkeypatch.setattr("fastllm.kernels.calls_may_overlap", lambda: False)
    bound, twins = [a_model(), a_model()], fastllm.Model(a_model().config, backend="numpy")
    for _ in range(2):
        assert bound[0]._lock is bound[1]._lock
        assert len({id(model._lock) for model in (*free, *bound, twins)}) == 5
        locking._unlock()
    assert a_model()._lock is bound[0]._lock


def test_a_cache_of_another_type_is_refused():
    config = a_model().config
    cache = fastllm.Model(config, backend="numpy", dtype=np.float64).new_cache()
    with pytest.raises(ValueError, match="a cache must be of a model like this one"):
        fastllm.Model(config, backend="numpy").decode([1], cache)


@pytest.mark.parametrize("other", [{"width": 64, "heads": 4}, {"context": 128}, {"layers": 1}, {"kv_heads": 1}])
def test_a_cache_of_another_model_is_refused(other):
    cache = a_model(**other).new_cache()
    model = a_model()
    for use in (lambda: model.prefill([1, 2, 3], None, cache), lambda: model.decode([1], cache)):
        with pytest.raises(ValueError, match="a cache must be of a model like this one"):
            use()
    assert len(model.prefill([1, 2, 3], None, a_model().new_cache())) == 1  # one of the same kind does


def press(*_):
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []

    def work():
        with uninterrupted(), uninterrupted():
            press()
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait():
    done = []

    def work():
        with uninterrupted() as block:
            press()
            done.append(block.came)
            press()
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_a_short_block_a_second_interrupt_waits_too():
    done = []

    def work(outer):
        with outer:
            press()
            with uninterrupted(is_short=True), uninterrupted(is_short=True):
                press()
                done.append(1)
            done.append("never")

    for outer in (uninterrupted(), uninterrupted(is_short=True)):
        with pytest.raises(KeyboardInterrupt):
            work(outer)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert done == [1, 1, "never"]  # the outer of the second is a short one


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("part", [1, 2])
def test_an_update_by_hand_is_made_whole(monkeypatch, presses, part):
    model, other = (a_trainer().model for _ in range(2))
    tokens = np.arange(12)
    optimizer, whole = fastllm.AdamW(model, weight_decay=0.1), fastllm.AdamW(other, weight_decay=0.1)
    for each in (model, other):
        each.loss_and_gradients(tokens[:-1], tokens[1:])
    whole.step(1e-2)
    update, calls = optimizer._update, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == part:
            for _ in range(presses):
                press()
        update(*arguments)

    monkeypatch.setattr(optimizer, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(1e-2)
    assert optimizer.steps == 1
    assert model.parameters.flat.tobytes() == other.parameters.flat.tobytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_merge_is_made_whole(monkeypatch):
    model = a_trainer().model
    model.add_lora(rank=2)
    model.adapter.flat[...] = 0.1
    expected, change, calls = model.forward([1, 2, 3]), type(model.adapter).change, []

    def interrupted(adapter, name, out):
        calls.append(1)
        if len(calls) == 3:
            press()
        return change(adapter, name, out)

    monkeypatch.setattr(type(model.adapter), "change", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.merge_adapter()
    assert model.adapter is None
    np.testing.assert_allclose(model.forward([1, 2, 3]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_process_does_not_wait_for_threads_that_are_not_there():
    code = """
import os, threading, fastllm
model = fastllm.Model(fastllm.preset("nano", vocab_size=9, layers=1, width=8, heads=2, context=8), backend="numpy")
held, go = threading.Event(), threading.Event()

def compute():
    with model._lock:  # as in the middle of a step
        held.set()
        go.wait()

threading.Thread(target=compute).start()
held.wait()
child = os.fork()
if not child:
    model.loss([1, 2], [2, 3])
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go.set()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_an_error_in_the_block_is_that_error():
    def work():
        with uninterrupted():
            press()
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_callers_own_is_called_at_once_and_stays():
    calls = []

    def handler(number, frame):
        calls.append(number)

    signal.signal(signal.SIGINT, handler)
    with uninterrupted():
        press()
        assert calls == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        press()
    assert calls == [signal.SIGINT]


def test_on_another_thread_it_is_just_the_block():
    def work():
        with uninterrupted():
            return signal.getsignal(signal.SIGINT)

    assert in_threads([work]) == [signal.default_int_handler]


def a_trainer():
    config = fastllm.preset("nano", vocab_size=50, layers=1, width=8, heads=2, context=16)
    model = fastllm.Model(config, backend="numpy")
    data = TokenStream(np.random.default_rng(0).integers(0, 50, 200), 8, 2)
    return fastllm.Trainer(model, fastllm.AdamW(model, weight_decay=0.1), data, fastllm.Schedule(peak=1e-2), 12)


@pytest.mark.parametrize("place", ["_update", "score_and_gradients"])
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("at", [1, 2, 5, 6])
def test_interrupted_in_an_update_and_trained_on_is_uninterrupted(monkeypatch, place, at, presses):
    whole = a_trainer()
    whole.train()

    trainer = a_trainer()
    of = trainer.optimizer if place == "_update" else trainer.model
    method, calls = getattr(of, place), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == at:
            for _ in range(presses):
                press()
        return method(*arguments, **options)

    monkeypatch.setattr(of, place, interrupted)
    told = []
    trainer.callbacks = [lambda done: told.append(done.step)]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.optimizer.steps == trainer.step < 12
    assert presses == 2 or len(told) == trainer.step
    trainer.train()
    assert (trainer.step, trainer.optimizer.steps) == (12, 12)
    assert trainer.model.parameters.flat.tobytes() == whole.model.parameters.flat.tobytes()


def test_a_compilation_is_not_interrupted():
    """Numba can compile nothing more after it: so Ctrl-C, once or twice, waits for the function that is compiled."""
    a_model()
    assert isinstance(jit._guard(), uninterrupted)
    done = []

    def compile_kernel(signature):
        press(), press()
        done.append(signature)

    with pytest.raises(KeyboardInterrupt):
        jit._after(None, compile_kernel)("signature")
    assert done == ["signature"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
