"""The flat buffer and its views."""

import numpy as np
import pytest
from model_switches import ROWS, make_config

import fastllm
from fastllm.memory import CACHE_LINE
from fastllm.parameters import Parameters, initialise, parameter_shapes

CONFIG = fastllm.ModelConfig(
    vocab_size=19, width=12, hidden=11, layers=2, heads=6, kv_heads=2, context=9, activation="swiglu", tied_head=False
)
every_config = pytest.mark.parametrize("config", [make_config(row) for row in ROWS])


@every_config
def test_views_fill_the_buffer_without_overlap(config):
    parameters = Parameters(config)
    for number, view in enumerate(parameters.values()):
        view += number + 1  # twice on one place would show
    expected = np.concatenate([np.full(view.size, i + 1) for i, view in enumerate(parameters.values())])
    np.testing.assert_array_equal(parameters.flat, expected)
    assert parameters.flat.ctypes.data % CACHE_LINE == 0
    assert all(view.flags.c_contiguous for view in parameters.values())


@every_config
def test_decay_is_for_matrices_of_blocks_and_head_alone(config):
    parameters = Parameters(config)
    parameters.flat[: parameters.decayed] = 1
    for name, view in parameters.items():
        is_matrix = name.endswith(".weight") and "norm" not in name and not name.startswith("embedding")
        assert (view == is_matrix).all(), name


def test_names():
    decayed, others = parameter_shapes(CONFIG)
    assert list(decayed)[:7] == [
        "blocks.0.attention.query.weight",
        "blocks.0.attention.key.weight",
        "blocks.0.attention.value.weight",
        "blocks.0.attention.output.weight",
        "blocks.0.feed_forward.gate.weight",
        "blocks.0.feed_forward.up.weight",
        "blocks.0.feed_forward.down.weight",
    ]
    assert decayed["blocks.1.attention.key.weight"] == (4, 12)
    assert decayed["blocks.1.feed_forward.down.weight"] == (12, 11)
    assert decayed["head.weight"] == others["embedding.token.weight"] == (19, 12)
    assert others["embedding.position.weight"] == (9, 12)
    assert others["final_norm.bias"] == (12,)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_joined_views_are_the_parameters_stacked(kind):
    parameters = Parameters(CONFIG)
    parameters.flat[...] = np.arange(parameters.flat.size)
    names = [f"blocks.1.attention.{part}.{kind}" for part in ("query", "key", "value")]
    joined = parameters.joined(*names)
    np.testing.assert_array_equal(joined, np.concatenate([parameters[name] for name in names]))
    assert np.shares_memory(joined, parameters.flat)


def test_load_copies():
    source, target = Parameters(CONFIG), Parameters(CONFIG)
    source.flat[...] = np.arange(source.flat.size)
    target.load(source)
    np.testing.assert_array_equal(target.flat, source.flat)
    assert not np.shares_memory(target.flat, source.flat)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_load_converts_floats(dtype):
    parameters = Parameters(CONFIG)
    parameters.load({name: np.full(view.shape, 0.5, dtype) for name, view in parameters.items()})
    assert (parameters.flat == 0.5).all()


NAME = "blocks.0.attention.output.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NAME: None}, rf"missing: \['{NAME}'\]"),
        ({"blocks.9.gamma": np.zeros(3)}, r"unknown: \['blocks.9.gamma'\]"),
        ({NAME: np.zeros((12, 11))}, rf"{NAME} must have shape \(12, 12\); got \(12, 11\)"),
        ({NAME: np.zeros(144)}, rf"{NAME} must have shape \(12, 12\); got \(144,\)"),
        ({NAME: np.full((12, 12), np.nan)}, f"{NAME} must be finite"),
        ({NAME: np.full((12, 12), -np.inf)}, f"{NAME} must be finite"),
        ({NAME: np.full((12, 12), 1e300)}, f"{NAME} must be finite"),  # too large for float32
        ({NAME: np.zeros((12, 12), np.int32)}, f"{NAME} must be floats; got int32"),
        ({NAME: np.zeros((12, 12), np.complex64)}, f"{NAME} must be floats; got complex64"),
    ],
)
def test_load_refuses_and_copies_nothing(change, message):
    parameters = Parameters(CONFIG)
    arrays = {name: np.ones(view.shape, np.float32) for name, view in parameters.items()} | change
    with pytest.raises(ValueError, match=message) as raised:
        parameters.load({name: array for name, array in arrays.items() if array is not None})
    assert "\n" not in str(raised.value)
    assert not parameters.flat.any()


def test_initialise_follows_from_the_seed():
    parameters = [Parameters(CONFIG) for _ in range(3)]
    for target, seed in zip(parameters, (1, 1, 2), strict=True):
        initialise(target, CONFIG, seed)
    np.testing.assert_array_equal(parameters[0].flat, parameters[1].flat)
    assert (parameters[0].flat != parameters[2].flat).any()


@pytest.mark.parametrize(
    ("changes", "stds"),
    [
        ({}, {"query": 0.02, "attention.output": 0.02 / 12**0.5, "down": 0.02 / 12**0.5, "token": 0.02}),
        ({"norm_position": "post"}, {"query": 0.02, "attention.output": 0.02, "down": 0.02}),
        ({"initial_std": None, "norm_position": "post"}, {"query": 64**-0.5, "down": 256**-0.5, "token": 0.02}),
        ({"initial_std": None, "norm_position": "post", "tied_head": False}, {"head": 64**-0.5}),
    ],
)
def test_size_of_random_weights(changes, stds):
    config = fastllm.ModelConfig(
        **{"vocab_size": 200, "width": 64, "hidden": 256, "layers": 6, "heads": 4, "context": 9, **changes}
    )
    parameters = Parameters(config)
    initialise(parameters, config, 0)
    for part, std in stds.items():
        weights = np.concatenate([view.reshape(-1) for name, view in parameters.items() if f"{part}.weight" in name])
        assert weights.std() == pytest.approx(std, rel=0.03), part  # of 12,000 numbers or more: five deviations
        assert abs(weights.mean()) < 0.05 * std
    for name, view in parameters.items():
        if name.endswith("bias") or "norm" in name:
            assert (view == float(name.endswith("weight"))).all(), name


def test_weights_that_are_not_laid_out_row_by_row():
    """Or of float64: they are copied to what kernels read."""
    model = fastllm.Model(CONFIG, seed=1)
    expected = model.forward([1, 2, 3])
    for change in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: a.astype(np.float64)):
        weights = {name: change(array) for name, array in model.parameters.items()}
        np.testing.assert_array_equal(fastllm.Model(CONFIG, weights=weights).forward([1, 2, 3]), expected)


def test_what_a_file_holds_is_not_written_to():
    config = fastllm.preset("nano", vocab_size=9, layers=1, width=8, heads=2, context=8)
    given = Parameters(config)
    model = fastllm.Model(config, backend="numpy", weights=given)
    for name in ("blocks.0.attention.query.weight", "final_norm.weight"):
        with pytest.raises(ValueError, match="read-only"):
            model.parameters[name][...] = 1
        given[name][...] = 2  # whoever gave them may
    model.unfreeze()["final_norm.weight"][...] = 1


def test_a_model_too_large_for_memory():
    """An address space has no room for it, whatever the machine's memory is."""
    config = fastllm.ModelConfig(
        vocab_size=1, width=1 << 24, hidden=1 << 24, context=1, layers=1, heads=1 << 18, positions="learned"
    )
    with pytest.raises(MemoryError, match=r"parameters must fit into memory; got \d[\d,]+, which take .* GB"):
        fastllm.Model(config)
