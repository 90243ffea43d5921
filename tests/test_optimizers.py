"""Optimizers on a model: what decays, clipping, state, that they learn. Their formulas: test_optimizer_kernels."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
from model_switches import make_batch, make_model

import fastllm
from fastllm.optimizers import OPTIMIZERS, clip_scale, gradient_norm

CONFIG = fastllm.ModelConfig(vocab_size=19, width=12, hidden=11, layers=1, heads=3, context=9)
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
backends = pytest.mark.parametrize("backend", ["numba", "numpy"])
DECAYING = {"adamw": fastllm.AdamW, "sgd": fastllm.SGD, "lion": fastllm.Lion}


@backends
@pytest.mark.parametrize("kind", DECAYING.values(), ids=DECAYING)
def test_only_matrices_decay(kind, backend):
    model = make_model(CONFIG, backend)
    before = model.parameters.flat.copy()
    model.zero_gradients()
    kind(model, weight_decay=0.5).step(0.1)
    decayed = model.parameters.decayed
    np.testing.assert_allclose(model.parameters.flat[:decayed], before[:decayed] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(model.parameters.flat[decayed:], before[decayed:])


@backends
@pytest.mark.parametrize("kind", DECAYING.values(), ids=DECAYING)
def test_decay_does_not_change_how_the_gradient_is_used(kind, backend):
    """The update is made in two parts of the buffer; without decay in one."""
    results = []
    for decay in (0.0, 1e-30):
        model = make_model(CONFIG, backend)
        optimizer = kind(model, weight_decay=decay)
        for _ in range(3):
            optimizer.step(0.01)
        results.append(model.parameters.flat.copy())
    np.testing.assert_array_equal(*results)


@every_optimizer
def test_kernels_and_twins_go_the_same_way(kind):
    results = []
    for backend in ("numba", "numpy"):
        model = make_model(CONFIG, backend)
        optimizer = kind(model)
        for step in range(3):
            model.gradients.flat[...] = np.random.default_rng(step).standard_normal(model.gradients.flat.size)
            optimizer.step(0.01, gradient_scale=0.3)
        results.append(model.parameters.flat)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "rate"), [("adam", 1e-2), ("adamw", 1e-2), ("sgd", 0.1), ("lion", 3e-3)])
def test_a_batch_is_learnt(name, rate):
    model = fastllm.Model(CONFIG, seed=0, backend="numpy")
    optimizer = OPTIMIZERS[name](model)
    batch = make_batch(CONFIG, (9, 9))
    losses = []
    for _ in range(60):
        model.zero_gradients()
        losses.append(model.loss_and_gradients(batch.tokens, batch.targets, batch.starts))
        optimizer.step(rate)
    assert losses[0] == pytest.approx(np.log(19), rel=0.1)
    assert losses[-1] < 0.7 * losses[0]


@every_optimizer
@backends
def test_state_continues_bit_by_bit(kind, backend):
    def step(model, optimizer, seed):
        model.gradients.flat[...] = np.random.default_rng(seed).standard_normal(model.gradients.flat.size)
        optimizer.step(0.01)

    model = make_model(CONFIG, backend)
    optimizer = kind(model)
    for seed in range(2):
        step(model, optimizer, seed)
    other = make_model(CONFIG, backend)
    other.parameters.flat[...] = model.parameters.flat
    resumed = kind(other)
    resumed.load_state({name: array.copy() for name, array in optimizer.state().items()})
    for seed in range(2, 5):
        step(model, optimizer, seed)
        step(other, resumed, seed)
    assert model.parameters.flat.tobytes() == other.parameters.flat.tobytes()
    assert resumed.steps == 5


@every_optimizer
def test_state_of_another_optimizer_or_model(kind):
    optimizer = kind(make_model(CONFIG, "numpy"))
    before = {name: array.copy() for name, array in optimizer.state().items()}
    larger = fastllm.ModelConfig(**{**CONFIG.to_dict(), "layers": 2})
    doubles = {name: array.astype(np.float64) for name, array in before.items()}
    turned = fastllm.ModelConfig(**{**CONFIG.to_dict(), "width": CONFIG.hidden, "hidden": CONFIG.width})
    wrong = [
        {}, kind(make_model(larger, "numpy")).state(), {**before, "third": np.zeros(3, np.float32)}, doubles,
        {**before, "of": kind(make_model(turned, "numpy")).state()["of"]},
    ]  # fmt: skip
    for state in wrong:
        with pytest.raises(ValueError, match=r"\Aan optimizer's state must be of the same optimizer and model[^\n]*\Z"):
            optimizer.load_state(state)
    for name, array in optimizer.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_state_of_an_adapter_elsewhere():
    """As large, but of other parameters."""

    def of_lora(targets, kind=fastllm.AdamW):
        model = make_model(CONFIG, "numpy")
        model.add_lora(rank=2, targets=targets)
        return kind(model)

    optimizer = of_lora(("key",))
    for other in (of_lora(("value",)), of_lora(("key",), fastllm.Adam)):
        with pytest.raises(ValueError, match=r"got one as large .* of other parameters or another optimizer"):
            other.load_state(optimizer.state())
    state = optimizer.state()
    del state["of"]  # as it was kept before there was one
    of_lora(("key",)).load_state(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("kind", [*OPTIMIZERS.values()])
def test_a_copy_goes_on_by_itself(kind, copied):
    def step(optimizer, seed):
        gradients = optimizer.model.gradients.flat
        gradients[...] = np.random.default_rng(seed).standard_normal(gradients.size)
        optimizer.step(0.01)
        return optimizer.model.parameters.flat.tobytes()

    optimizer = kind(make_model(CONFIG, "numpy"))
    step(optimizer, 0)
    other = copied(optimizer)
    before = optimizer.model.parameters.flat.tobytes()
    after = step(other, 1)
    assert optimizer.model.parameters.flat.tobytes() == before != after
    assert step(optimizer, 1) == after


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1e39, "1", None])
def test_a_scale_that_is_no_number_changes_nothing(scale):
    model = make_model(CONFIG, "numpy")
    optimizer, before = fastllm.AdamW(model), model.parameters.flat.tobytes()
    with pytest.raises(ValueError, match="gradient_scale must be a finite number; got"):
        optimizer.step(0.1, gradient_scale=scale)
    assert (model.parameters.flat.tobytes(), optimizer.steps) == (before, 0)


@pytest.mark.parametrize("kind", [*OPTIMIZERS], ids=str)
def test_an_update_that_fails_is_not_counted(kind, monkeypatch):
    model = make_model(CONFIG, "numpy")
    optimizer, before = OPTIMIZERS[kind](model), model.parameters.flat.tobytes()

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(optimizer, "_update", fail)
    with pytest.raises(MemoryError):
        optimizer.step(0.1)
    assert (model.parameters.flat.tobytes(), optimizer.steps) == (before, 0)


@pytest.mark.parametrize("kind", [*OPTIMIZERS], ids=str)
def test_compiling_changes_nothing(kind):
    model = make_model(CONFIG, "numba")
    optimizer = OPTIMIZERS[kind](model)
    before = model.parameters.flat.copy(), model.gradients.flat.copy()
    optimizer.compile()
    np.testing.assert_array_equal(model.parameters.flat, before[0])
    np.testing.assert_array_equal(model.gradients.flat, before[1])
    assert optimizer.steps == 0


# Clipping


@backends
@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_clipping_scales_all_gradients_alike(backend, share):
    model = make_model(CONFIG, backend)
    before = model.gradients.flat.copy()
    norm = np.linalg.norm(before.astype(np.float64))
    assert fastllm.clip_gradients(model, share * norm) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(model.gradients.flat, before * min(1, share), rtol=1e-6)
    assert gradient_norm(model) == pytest.approx(min(1, share) * norm, rel=1e-6)


@backends
def test_scaling_in_the_update_is_clipping_before_it(backend):
    clipped, scaled = make_model(CONFIG, backend), make_model(CONFIG, backend)
    fastllm.clip_gradients(clipped, 0.5)
    fastllm.AdamW(clipped).step(0.1)
    fastllm.AdamW(scaled).step(0.1, gradient_scale=clip_scale(gradient_norm(scaled), 0.5))
    np.testing.assert_allclose(clipped.parameters.flat, scaled.parameters.flat, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "max_norm", "scale"),
    [(2.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1e30, 0.0, 1.0), (0.5, 1.0, 1.0)],
)
def test_clip_scale(norm, max_norm, scale):
    assert clip_scale(norm, max_norm) == scale


@backends
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norm_of_gradients_that_are_not_finite(backend, value):
    model = make_model(CONFIG, backend)
    model.gradients["final_norm.bias"][3] = value
    assert not np.isfinite(gradient_norm(model))


# Wrong use


def test_what_is_no_model():
    model = fastllm.Model(fastllm.preset("nano", vocab_size=5, layers=1, width=8, heads=2), backend="numpy")
    for make in (fastllm.AdamW, fastllm.SGD, fastllm.Lion):
        with pytest.raises(TypeError, match=r"made for a Model; got Parameters; .*the learning rate to step\(\)"):
            make(model.parameters)
    with pytest.raises(TypeError, match="positional"):
        fastllm.SGD(model, 0.01)  # a learning rate, which would be the momentum
    with pytest.raises(TypeError, match="clip_gradients takes a Model; got SGD"):
        fastllm.clip_gradients(fastllm.SGD(model), 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: fastllm.AdamW(m, weight_decay=-1), "weight_decay must be finite and not negative; got -1"),
        (lambda m: fastllm.SGD(m, weight_decay=np.nan), "weight_decay must be finite and not negative; got nan"),
        (lambda m: fastllm.SGD(m, weight_decay=1e40), "weight_decay must be finite and not negative; got 1e[+]40"),
        (lambda m: fastllm.AdamW(m, betas=(1.0, 0.9)), r"betas\[0\] must be at least 0 and below 1; got 1.0"),
        (lambda m: fastllm.Adam(m, betas=(0.9, -0.1)), r"betas\[1\] must be at least 0 and below 1; got -0.1"),
        (lambda m: fastllm.Lion(m, betas=(0.9, np.nan)), r"betas\[1\] must be at least 0 and below 1; got nan"),
        (lambda m: fastllm.AdamW(m, eps=0), "eps must be from 1e-30 to 1e[+]30; got 0"),
        (lambda m: fastllm.AdamW(m, eps=1e-46), "eps must be from 1e-30 to 1e[+]30; got 1e-46"),
        (lambda m: fastllm.AdamW(m, eps=float("inf")), "eps must be from 1e-30 to 1e[+]30; got inf"),
        (lambda m: fastllm.SGD(m, momentum=1), "momentum must be at least 0 and below 1; got 1"),
        (lambda m: fastllm.AdamW(m, weight_decay=None), "weight_decay must be finite and not negative; got None"),
        (lambda m: fastllm.AdamW(m, betas=(0.9, "a")), r"betas\[1\] must be at least 0 and below 1; got a"),
        (lambda m: fastllm.AdamW(m, eps="a"), "eps must be from 1e-30 to 1e[+]30; got a"),
        (lambda m: fastllm.clip_gradients(m, 0), "max_norm must be above 0; got 0"),
        (lambda m: fastllm.clip_gradients(m, -1), "max_norm must be above 0; got -1"),
        (lambda m: fastllm.clip_gradients(m, np.nan), "max_norm must be above 0; got nan"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make(make_model(CONFIG, "numpy"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("rate", [None, "a", -1, float("nan"), float("inf"), 10**400, 1e300])
@every_optimizer
def test_learning_rates_that_are_none(kind, rate):
    model = fastllm.Model(fastllm.preset("nano", vocab_size=9, width=4, hidden=4, heads=1, layers=1), backend="numpy")
    optimizer, before = kind(model), model.parameters.flat.copy()
    with pytest.raises(ValueError, match="learning_rate must be a number >= 0; got"):
        optimizer.step(rate)
    np.testing.assert_array_equal(model.parameters.flat, before)
    assert optimizer.steps == 0


def test_an_optimizer_of_what_is_no_longer_trained_changes_nothing():
    model = fastllm.Model(fastllm.preset("nano", vocab_size=9, layers=1, width=8, heads=2, context=8), backend="numpy")
    frozen = fastllm.Model(model.config, backend="numpy", weights=model.parameters)
    frozen.add_lora(rank=2)
    optimizer = fastllm.AdamW(frozen)
    frozen.remove_adapter()
    with pytest.raises(ValueError, match="make a new optimizer"):
        optimizer.step(1e-3)
    assert frozen.is_frozen
    assert frozen._gradients is None


def test_numbers_of_numpys():
    model = fastllm.Model(fastllm.preset("nano", vocab_size=9, layers=1, width=8, heads=2, context=8), backend="numpy")
    optimizer = fastllm.AdamW(model)
    optimizer.step(np.float16(1e-3), np.float32(0.5))  # warnings are errors
    assert optimizer.steps == 1


@pytest.mark.parametrize("number", [np.float32, Fraction, int])
def test_options_are_kept_as_pythons_floats(number):
    """A kernel is compiled anew for each type of number, and can't be for some."""
    given = number(0.5)
    for optimizer in (
        fastllm.AdamW(make_model(CONFIG, "numpy"), betas=(given, given)),
        fastllm.SGD(make_model(CONFIG, "numpy"), momentum=given),
        fastllm.Lion(make_model(CONFIG, "numpy"), betas=[given, given]),
    ):
        assert {type(option) for option in optimizer._options(0.0)} <= {float, int}
        assert optimizer._options(0.0)[0] == float(given)
        assert type(optimizer._options(0.0)[0]) is float


@backends
@pytest.mark.parametrize("value", [1e20, 1e-25])
def test_gradients_whose_squares_no_float32_holds(backend, value):
    model = make_model(CONFIG, backend)
    model.gradients.flat[...] = value
    norm = value * np.sqrt(model.gradients.flat.size)
    assert gradient_norm(model) == pytest.approx(norm, rel=1e-6)
    model.gradients.flat[1:] = 0
    assert fastllm.clip_gradients(model, value / 4) == pytest.approx(value, rel=1e-6)
    assert model.gradients.flat[0] == pytest.approx(value / 4, rel=1e-6)


@backends
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_gradients_that_are_not_finite_are_not_clipped(backend, value):
    model = make_model(CONFIG, backend)
    model.gradients.flat[...] = 1
    model.gradients.flat[7] = value
    with pytest.raises(ValueError, match="gradients must be finite to be clipped; got a norm of"):
        fastllm.clip_gradients(model, 1.0)
    assert model.gradients.flat[0] == 1


def test_betas_are_two():
    with pytest.raises(ValueError, match="betas must be two numbers; got"):
        fastllm.AdamW(make_model(CONFIG, "numpy"), betas=(0.9,))
