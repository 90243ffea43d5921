"""The training loop: parts equal the whole, stops leave no trace, what is not finite is refused."""

import copy
import pickle

import numpy as np
import pytest

import fastllm
from fastllm.datasets import Example, Examples, OneBatch, PackedBatch, TokenStream
from fastllm.errors import TrainingError
from fastllm.optimizers import OPTIMIZERS, gradient_norm
from fastllm.training import Trainer, evaluate

BACKENDS = ("numba", "numpy")
CONFIG = fastllm.ModelConfig(vocab_size=19, width=12, hidden=11, layers=1, heads=3, context=9)
STEPS = 12


def make_dataset(rows=4):
    """Ten sequences of 1 to 9 tokens that count upwards, every third token without a target."""
    examples = []
    for length in (*range(1, 10), 5):
        tokens = np.arange(length, 2 * length, dtype=np.int32) % 19
        examples.append(Example(tokens, np.where(tokens % 3 == 0, -1, (tokens + 1) % 19).astype(np.int32)))
    return Examples([e for e in examples if (e.targets >= 0).any()], rows, seed=1)


def make_trainer(backend="numpy", optimizer="adamw", dropout=0.0, rows=4, **options):
    config = fastllm.ModelConfig(**{**CONFIG.to_dict(), "dropout": dropout})
    model = fastllm.Model(config, seed=2, backend=backend)
    schedule = fastllm.Schedule("cosine", 1e-2, STEPS, warmup=2)
    return Trainer(model, OPTIMIZERS[optimizer](model), make_dataset(rows), schedule, STEPS, **options)


def weights(trainer):
    return trainer.model.parameters.flat.tobytes()


def test_loss_goes_down():
    trainer = make_trainer(rows=100)
    losses = []
    trainer.callbacks.append(lambda done: losses.append(done.score.loss))
    trainer.train()
    assert losses[0] == pytest.approx(np.log(19), rel=0.1)
    assert losses[-1] < losses[0] - 0.3
    assert evaluate(trainer.model, trainer.dataset).loss < losses[0] - 0.3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_halves_are_the_whole_to_the_bit(backend, optimizer):
    options = {"backend": backend, "optimizer": optimizer, "dropout": 0.2, "accumulate": 2, "seed": 7}
    whole = make_trainer(**options)
    whole.train()
    first = make_trainer(**options)
    first.train(STEPS // 2)
    assert first.step == STEPS // 2
    second = make_trainer(**options)
    second.model.parameters.load(first.model.parameters)
    second.optimizer.load_state(first.optimizer.state())
    second.step = first.step
    second.train()
    assert weights(second) == weights(whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parts", [2, 3, 100])
def test_a_batch_in_parts_is_the_whole_batch(backend, parts):
    whole, split = (make_trainer(backend, accumulate=n, rows=7) for n in (1, parts))
    whole.train(1), split.train(1)
    norms = gradient_norm(whole.model), gradient_norm(split.model)
    np.testing.assert_allclose(split.model.gradients.flat, whole.model.gradients.flat, rtol=1e-4, atol=1e-5 * norms[0])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_what_a_step_tells():
    trainer = make_trainer(rows=3)
    steps = []
    trainer.callbacks.append(steps.append)
    before = trainer.model.parameters.flat.copy()
    trainer.train(1)
    batch = trainer.dataset.batch(0)
    (done,) = steps
    model = make_trainer().model
    assert (done.step, done.tokens, done.score.targets) == (1, len(batch.tokens), batch.target_count)
    assert done.score.loss == pytest.approx(model.loss_and_gradients(batch.tokens, batch.targets, batch.starts))
    assert done.gradient_norm == pytest.approx(gradient_norm(model), rel=1e-6)
    assert done.learning_rate == trainer.schedule(0)
    assert done.seconds > 0
    assert (trainer.model.parameters.flat != before).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping(backend):
    """SGD's first step goes learning rate * max_norm far, in the gradient's direction."""
    trainer = make_trainer(backend, "sgd", max_norm=0.01)
    before = trainer.model.parameters.flat.copy()
    trainer.train(1)
    moved = np.linalg.norm((trainer.model.parameters.flat - before).astype(np.float64))
    assert moved == pytest.approx(0.01 * trainer.schedule(0), rel=1e-3)


def test_max_norm_zero_never_clips():
    free, loose = make_trainer(max_norm=0), make_trainer(max_norm=1e9)
    free.train(3), loose.train(3)
    assert weights(free) == weights(loose)


@pytest.mark.parametrize("seed", [0, 1 << 15, (1 << 32) - 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_with_any_seed(backend, seed):
    """Kernels and twins drop the same; each seed other elements."""
    trainer, twin, other = (
        make_trainer(b, dropout=0.5, seed=s) for b, s in ((backend, seed), ("numpy", seed), (backend, seed ^ 1))
    )
    for one in (trainer, twin, other):
        one.train(2)
    np.testing.assert_allclose(trainer.model.parameters.flat, twin.model.parameters.flat, rtol=1e-4, atol=1e-4)
    assert weights(trainer) != weights(other)


def test_no_two_parts_share_their_masks():
    """Neither in one run nor in another of the next seed."""
    seeds = []
    for seed in (5, 6):
        trainer = make_trainer(dropout=0.5, accumulate=3, rows=7, seed=seed)
        score = trainer.model.score_and_gradients
        trainer.model.score_and_gradients = lambda *given, score=score, **more: (
            seeds.append(given[-1]) or score(*given, **more)
        )
        trainer.train()
    assert len(set(seeds)) == len(seeds) == 2 * 3 * STEPS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stops_training_before_the_update(backend, value):
    trainer = make_trainer(backend)
    trainer.train(3)
    weight = trainer.model.parameters["final_norm.weight"]
    weight[0] = value
    before, state = weights(trainer), trainer.optimizer.state()["first"].tobytes()
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=r"finite; got loss .* at step 4; lower"):
        trainer.train()
    assert (weights(trainer), trainer.optimizer.state()["first"].tobytes(), trainer.step) == (before, state, 3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_without_targets_changes_nothing(accumulate):
    """The gradients of the batch before don't count again."""
    trainer = make_trainer(optimizer="sgd", accumulate=accumulate)
    trainer.train(1)
    before, batch = weights(trainer), trainer.dataset.batch(1)
    none = PackedBatch(batch.tokens, np.full_like(batch.targets, -1), batch.starts)
    trainer.dataset = OneBatch(none)
    with pytest.raises(ValueError, match="a batch needs at least one target >= 0; got none for step 2"):
        trainer.train()
    assert weights(trainer) == before
    assert trainer.step == 1


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("starts", [[0, 5], [3, 8], [0], []])
def test_a_batch_whose_starts_leave_something_out_changes_nothing(accumulate, starts):
    trainer = make_trainer(optimizer="sgd", accumulate=accumulate)
    trainer.train(1)
    before, batch = weights(trainer), trainer.dataset.batch(1)
    trainer.dataset = OneBatch(PackedBatch(batch.tokens, batch.targets, np.array(starts, np.int32)))
    with pytest.raises(ValueError, match="starts"):
        trainer.train()
    assert (weights(trainer), trainer.step) == (before, 1)


def test_an_optimizer_of_another_model():
    trainer = make_trainer()
    other = make_trainer().optimizer
    with pytest.raises(ValueError, match="must be made for this model as it is now; got another's"):
        Trainer(trainer.model, other, trainer.dataset, trainer.schedule, STEPS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": 1e-3}, "a schedule gives the learning rate of a step; got 0.001"),
        ({"dataset": [1, 2]}, "a data set gives the batch of a step; got list"),
        ({"max_norm": None}, "max_norm must be a number; got None; 0 never clips"),
        ({"callbacks": print}, "callbacks must be several functions; got one"),
        ({"callbacks": [print, None]}, "callbacks must be functions; got None among them"),
        ({"model": None}, "a Model is trained by an Optimizer; got NoneType and"),
        ({"optimizer": "adam"}, "got Model and str"),
        ({"steps": 2.5}, "steps must be a whole number; got 2.5"),
    ],
)
def test_what_is_something_else_is_said_at_once(wrong, message):
    given = make_trainer()
    parts = {name: getattr(given, name) for name in ("model", "optimizer", "dataset", "schedule")}
    with pytest.raises(TypeError, match=message):
        Trainer(**{**parts, "steps": 5, **wrong})
    with pytest.raises(TypeError, match="until must be a whole number"):
        given.train(2.5)
    with pytest.raises(ValueError, match=r"from 0 to 2\^32 - 1"):
        Trainer(**parts, steps=5, seed=1 << 32)


def test_training_to_the_end_again_does_nothing():
    trainer = make_trainer()
    trainer.train()
    before = weights(trainer)
    trainer.train(), trainer.train(3), trainer.train(STEPS + 5)
    assert (weights(trainer), trainer.step) == (before, STEPS)


def test_evaluation_is_the_mean_over_all_targets():
    model, dataset = make_trainer().model, make_dataset()
    score = evaluate(model, dataset)
    alone = [model.score(e.tokens, e.targets) for e in dataset.examples]
    assert score.targets == sum(one.targets for one in alone)
    assert score.loss == pytest.approx(sum(one.total for one in alone) / score.targets, rel=1e-5)
    assert score.perplexity == pytest.approx(np.exp(score.loss))
    assert score.accuracy == sum(one.correct for one in alone) / score.targets


def test_batches_without_a_target_are_left_out_of_an_evaluation(monkeypatch):
    monkeypatch.setattr("fastllm.datasets.ROWS", 4)
    stream = TokenStream(np.array([1, 2, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2]), 4, missing=0)
    assert [batch.target_count for batch in stream.in_order()] == [3, 0, 1]
    assert evaluate(make_trainer().model, stream).targets == 4


def test_an_update_that_is_refused_is_not_counted():
    trainer = make_trainer()
    trainer.train(1)
    before, trainer.schedule = weights(trainer), lambda step: np.nan
    with pytest.raises(ValueError, match="learning_rate must be a number >= 0; got nan"):
        trainer.train()
    assert (weights(trainer), trainer.step) == (before, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": -1}, "max_norm must be finite and not negative; got -1"),
        ({"max_norm": np.nan}, "max_norm must be finite and not negative; got nan"),
        ({"accumulate": 0}, "accumulate and steps must be 1 or more; got 0 and 12"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_trainer_that_has_trained_can_be_copied(copied):
    model = fastllm.Model(fastllm.preset("rustgpt", vocab_size=30))
    batch = PackedBatch(np.arange(6), np.arange(6), np.array([0, 6]))
    trainer = Trainer(model, fastllm.Adam(model), OneBatch(batch), fastllm.Schedule(peak=1e-3), steps=8)
    trainer.train(until=4)
    other = copied(trainer)
    for each in (trainer, other):
        each.train()
    np.testing.assert_array_equal(other.model.parameters.flat, model.parameters.flat)


def test_numbers_of_numpy_are_numbers():
    plain, other = (make_trainer(dropout=0.2, seed=kind(3), accumulate=kind(2)) for kind in (int, np.int64))
    other.step = np.int64(0)
    for trainer in (plain, other):
        trainer.train(3)
    np.testing.assert_array_equal(plain.model.parameters.flat, other.model.parameters.flat)


@pytest.mark.parametrize("name", ["seed", "accumulate"])
@pytest.mark.parametrize("value", [None, 1.5, "1", True])
def test_what_is_no_whole_number(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a whole number; got"):
        make_trainer(**{name: value})


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_whose_squares_would_overflow(backend, monkeypatch):
    """Clipped, they do no harm; else the optimizer's second moments would be infinite for ever."""
    for max_norm, is_fine in ((1.0, True), (0.0, False)):
        trainer = make_trainer(backend, max_norm=max_norm)
        trainer.train(1)
        real = trainer.model.score_and_gradients

        def huge(*given, real=real, model=trainer.model, **named):
            score = real(*given, **named)
            model.gradients.flat[...] *= np.float32(1e25)
            return score

        monkeypatch.setattr(trainer.model, "score_and_gradients", huge)
        if is_fine:
            trainer.train(2)
        else:
            with pytest.raises(TrainingError, match=r"must stay finite; got loss .* and gradient norm .*e\+2"):
                trainer.train(2)
        assert all(np.isfinite(moment).all() for moment in trainer.optimizer.state().values())
