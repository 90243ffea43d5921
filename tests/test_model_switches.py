"""Model on kernels, on twins and against calculus, for every two settings of its configuration."""

import numpy as np
import pytest
from model_switches import ROWS, all_pairs, make_batch, make_config, make_model, pairs_of

import fastllm

every_row = pytest.mark.parametrize(
    "config",
    [
        pytest.param(make_config(row), id=f"{i}-{row['norm']}-{row['activation']}-{row['positions']}-{row['heads']}")
        for i, row in enumerate(ROWS)
    ],
)

LENGTHS = (1, 4, 9, 3)
DROPOUT_SEED = 12345
# Of the largest gradient of a parameter. float32 rounds to 6e-8; norms of rows of 12 and two blocks multiply
# that by some hundred. The smallest mistake to be found, GELU by erf instead of tanh, makes 1e-3.
TOLERANCE = 3e-5
# Some gradients are 0 but for rounding (the key bias moves all scores of a row alike): of the largest of all.
FLOOR = 1e-6


def run(model, batch):
    """Loss, and what was added to each gradient."""
    before = {name: gradient.copy() for name, gradient in model.gradients.items()}
    score = model.score_and_gradients(
        batch.tokens, batch.targets, batch.starts, dropout_seed=DROPOUT_SEED if model.config.dropout else None
    )
    return score, {name: gradient - before[name] for name, gradient in model.gradients.items()}


def test_every_two_settings_meet():
    assert set().union(*map(pairs_of, ROWS)) >= all_pairs()
    assert len(ROWS) < 60


@every_row
def test_kernels_equal_twins(config):
    batch = make_batch(config, LENGTHS)
    model, twin = make_model(config, "numba"), make_model(config, "numpy", np.float64)
    np.testing.assert_array_equal(model.parameters.flat, twin.parameters.flat)
    score, gradients = run(model, batch)
    expected_score, expected = run(twin, batch)
    assert score.total == pytest.approx(expected_score.total, rel=1e-5)
    assert (score.correct, score.targets) == (expected_score.correct, expected_score.targets)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        error = np.abs(gradients[name] - gradient).max()
        assert error <= TOLERANCE * np.abs(gradient).max() + FLOOR * largest, name


@every_row
def test_forward_and_score_of_kernels_equal_twins(config):
    batch = make_batch(config, LENGTHS)
    model, twin = make_model(config, "numba"), make_model(config, "numpy", np.float64)
    logits, expected = (m.forward(batch.tokens, batch.starts) for m in (model, twin))
    np.testing.assert_allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())
    losses = [m.loss(batch.tokens, batch.targets, batch.starts) for m in (model, twin)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Of a slope. The error of a central difference is STEP^2 times the third derivative, and 1e-16 / STEP from
# rounding a loss of size one.
STEP = 1e-5
DIFFERENCE_TOLERANCE = 1e-6


@every_row
def test_gradients_are_the_derivatives_of_the_loss(config):
    batch = make_batch(config, LENGTHS)
    model = make_model(config, "numpy", np.float64)
    _, gradients = run(model, batch)
    rng = np.random.default_rng(1)
    for name, parameter in model.parameters.items():
        direction = rng.standard_normal(parameter.shape)
        losses = []
        for shift in (STEP, -STEP):
            parameter += shift * direction
            losses.append(run(model, batch)[0].loss)
            parameter -= shift * direction
        slope = (losses[0] - losses[1]) / (2 * STEP)
        expected = np.sum(gradients[name] * direction)
        assert slope == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE, abs=DIFFERENCE_TOLERANCE), name


@pytest.mark.parametrize("name", ["rustgpt", "gpt2", "llama", "nano"])
def test_presets_on_kernels_and_on_twins(name):
    """The presets as they are, except for a smaller vocabulary, fewer blocks and a shorter context."""
    config = fastllm.preset(name, vocab_size=131, layers=2, context=16)
    batch = make_batch(config, (5, 16, 7))
    losses = []
    for backend in ("numba", "numpy"):
        model = fastllm.Model(config, seed=3, backend=backend)
        losses.append(model.loss_and_gradients(batch.tokens, batch.targets, batch.starts))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # Random weights know nothing: each token is about as likely as any other.
    assert losses[0] == pytest.approx(np.log(131), rel=0.25)
