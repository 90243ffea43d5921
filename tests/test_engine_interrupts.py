"""An engine that Ctrl-C interrupts: its texts are what they would have been."""

import signal

import pytest
from generation_fakes import TableModel, is_idle, run, samples

from fastllm.generation import Engine, GenerationConfig, generate_tokens
from fastllm.generation.sampling import Sampler


class Interrupted(TableModel):
    """Ctrl-C in the call of the model with the number `at`, after the cache has taken the tokens."""

    calls = 0
    at = -1

    def interrupt(self):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt

    def prefill(self, *arguments):
        logits = super().prefill(*arguments)
        self.interrupt()
        return logits

    def decode(self, *arguments):
        logits = super().decode(*arguments)
        self.interrupt()
        return logits


@pytest.mark.parametrize("at", range(1, 12))
@pytest.mark.parametrize("speculate", [0, 3])
def test_an_interrupted_step_is_done_again(at, speculate):
    def texts(model):
        running = Engine(model, slots=3, chunk=4)
        config = GenerationConfig(max_tokens=6, speculate=speculate)
        generations = running.submit([1] * 6, config) + running.submit([2, 3], config)
        generations += running.submit([1, 2], GenerationConfig(max_tokens=5, n=2, temperature=1.0))
        while running.busy:
            try:
                running.step()
            except KeyboardInterrupt:
                model.at = -1
        assert is_idle(running)
        return [generation.tokens for generation in generations]

    model = Interrupted(context=40)
    model.at = at
    assert texts(model) == texts(TableModel(context=40))
    assert model.at == -1 or model.calls < at


def finish(running):
    """Step until every text has ended; how many steps Ctrl-C interrupted."""
    interrupts = 0
    while running.busy:
        try:
            running.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert is_idle(running)
    return interrupts


@pytest.mark.parametrize("at", range(1, 10))
def test_ctrl_c_while_tokens_are_drawn_changes_no_text(at):
    class Pressed(Sampler):
        draws = 0

        def __call__(self, logits):
            token = super().__call__(logits)
            Pressed.draws += 1
            if Pressed.draws == at:
                signal.raise_signal(signal.SIGINT)
            return token

    def texts(kind):
        running = Engine(TableModel(context=40), slots=2)
        config = GenerationConfig(max_tokens=4, temperature=1.0, seed=3)
        generations = [one for prompt in ([1, 2], [3]) for one in running.submit(prompt, config, kind(config))]
        interrupts = finish(running)
        return [one.tokens for one in generations], interrupts

    expected, none = texts(Sampler)
    assert none == 0
    assert texts(Pressed) == (expected, int(at <= 8))


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("at", range(1, 10))
def test_ctrl_c_while_the_first_token_of_a_sample_is_drawn_changes_no_text(monkeypatch, slots, at):
    """Its prompt has been read: it begins where another one ends, or beside it."""
    draws = 0
    choose = Sampler._choose

    def pressed(self, logits):
        nonlocal draws
        token = choose(self, logits)
        draws += 1
        if draws == at:
            signal.raise_signal(signal.SIGINT)
        return token

    config = GenerationConfig(max_tokens=3, n=3, temperature=1.0)
    expected = list(samples([1, 2], config, TableModel(context=40)))
    monkeypatch.setattr(Sampler, "_choose", pressed)
    running = Engine(TableModel(context=40), slots)
    generations = running.submit([1, 2], config)
    assert finish(running) == 1
    assert [generation.tokens for generation in generations] == expected


def test_a_sampler_that_raises_leaves_no_trace_of_the_step():
    class Failing(Sampler):
        fails = True

        def __call__(self, logits):
            if self.fails:
                raise KeyboardInterrupt
            return super().__call__(logits)

    model = TableModel(context=40)
    running = Engine(model, slots=2)
    config = GenerationConfig(max_tokens=4)
    sampler = Failing(config)
    [one] = running.submit([1, 2], config)
    [two] = running.submit([3], config, sampler)
    for sampler.fails in (True, True, False, True, True, False):
        if sampler.fails:
            with pytest.raises(KeyboardInterrupt):
                running.step()
        else:
            running.step()
    run(running)
    alone = TableModel(context=40)
    assert one.tokens == list(generate_tokens(alone, [1, 2], max_tokens=4))
    assert two.tokens == list(generate_tokens(alone, [3], max_tokens=4))


def test_samples_that_were_interrupted_begin_again():
    def failing(sampler):
        raise KeyboardInterrupt

    model = TableModel(context=40)
    running = Engine(model, slots=2)
    config = GenerationConfig(max_tokens=3, n=3, temperature=1.0)
    generations = running.submit([1, 2], config)
    sampler = generations[1]._sampler
    generations[1]._sampler = failing
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            running.step()
    generations[1]._sampler = sampler
    run(running)
    assert is_idle(running)
    expected = list(samples([1, 2], config, TableModel(context=40)))
    assert [generation.tokens for generation in generations] == expected
