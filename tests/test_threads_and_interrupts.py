"""Threads that share a model take turns; Ctrl-C leaves an update whole."""

import signal
import threading

import numpy as np
import pytest

import fastllm
from fastllm.datasets import TokenStream
from fastllm.interrupts import uninterrupted

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
@pytest.mark.parametrize("at", [1, 2, 5, 6])
def test_interrupted_in_an_update_and_trained_on_is_uninterrupted(monkeypatch, place, at):
    whole = a_trainer()
    whole.train()

    trainer = a_trainer()
    of = trainer.optimizer if place == "_update" else trainer.model
    method, calls = getattr(of, place), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == at:
            press()
        return method(*arguments, **options)

    monkeypatch.setattr(of, place, interrupted)
    told = []
    trainer.callbacks = [lambda done: told.append(done.step)]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.optimizer.steps == trainer.step == len(told) < 12
    trainer.train()
    assert (trainer.step, trainer.optimizer.steps) == (12, 12)
    assert trainer.model.parameters.flat.tobytes() == whole.model.parameters.flat.tobytes()
