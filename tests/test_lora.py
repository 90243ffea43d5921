"""Low-rank adapters: gradients by the chain rule, bases of every kind, merging, decoding, what stays as it was."""

import dataclasses

import numpy as np
import pytest
from model_switches import make_batch, make_model

import fastllm
from fastllm.errors import ConfigError
from fastllm.kernels.rounded import ROUNDED
from fastllm.lora import AdapterParameters, Addition, LoRAConfig, additions_of, linear_maps
from fastllm.packed import Packed
from fastllm.quantize import dequantize, quantize

# Of the largest number: see test_model_switches.
TOLERANCE = 3e-5

SIZES = {"vocab_size": 23, "width": 32, "hidden": 64, "layers": 2, "context": 9}
LLAMA_PARTS = {"norm": "rms_norm", "activation": "swiglu", "positions": "rope"}
NO_BIASES = {"attention_bias": False, "feed_forward_bias": False}
CONFIGS = {
    "gpt2": fastllm.ModelConfig(**SIZES, heads=4),
    "llama": fastllm.ModelConfig(**SIZES, **LLAMA_PARTS, **NO_BIASES, heads=4, kv_heads=2, tied_head=False),
    "qk norm": fastllm.ModelConfig(
        **SIZES, **LLAMA_PARTS, heads=2, kv_heads=1, head_size=32, qk_norm=True, rope_interleaved=True
    ),
    "rustgpt": fastllm.preset("rustgpt", **SIZES, heads=2),
}
# "memory": float32 that could be trained; the others as a file has them.
BASES = ("memory", "F32", "F16", "Q8_0", "Q4_0")
LENGTHS = (1, 4, 9, 3)

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_base = pytest.mark.parametrize("base", BASES)
backends = pytest.mark.parametrize("backend", ["numba", "numpy"])


def assert_close(got, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def fill(adapter, seed=3):
    """b, too, is random: at its beginning, a has no gradient."""
    rng = np.random.default_rng(seed)
    for view in adapter.values():
        view[...] = rng.normal(0, view.shape[1] ** -0.5, view.shape)
    return adapter


def open_base(config, base, backend):
    """A model with random weights of a kind, without an adapter."""
    model = make_model(config, backend)
    model = fastllm.Model(config, backend=backend) if base == "memory" else model
    parameters = make_model(config, "numpy").parameters
    if base == "memory":
        model.parameters.load(parameters)
        return model
    weights = {
        name: quantize(array, base) if array.ndim == 2 and name != "embedding.position.weight" else array
        for name, array in parameters.items()
    }
    return fastllm.Model(config, backend=backend, weights=weights)


def tuned(config, base="memory", backend="numba", **options):
    """A model with a random adapter of rank 3 on all maps, or as the options say."""
    model = open_base(config, base, backend)
    fill(model.add_lora(**{"rank": 3, "alpha": 4.5, **options}))
    return model


def merged(model):
    """The same function in float64, without an adapter: its base's numbers and, beside, what the adapter adds."""
    whole = fastllm.Model(model.config, backend="numpy", dtype=np.float64)
    for name, view in whole.parameters.items():
        view[...] = model.parameters[name]
    for name, addition in model.adapter.additions.items():
        a, b = (model.adapter[f"{name}.lora_{part}"].astype(np.float64) for part in "ab")
        whole.parameters[f"{name}.weight"][...] += addition.scale * b @ a
    return whole


def train(model, steps=3, rate=1e-2, **options):
    optimizer = fastllm.AdamW(model, weight_decay=0.1)
    batch = make_batch(model.config, LENGTHS)
    for _ in range(steps):
        model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False, **options)
        optimizer.step(rate)
    return optimizer


# Gradients


@every_config
@every_base
def test_gradients_follow_from_those_of_the_merged_weights(config, base):
    """W = base + scale * b @ a, so db = scale * dW @ a.T and da = scale * b.T @ dW."""
    model = tuned(config, base)
    whole, batch = merged(model), make_batch(config, LENGTHS)
    whole.zero_gradients()
    expected = whole.score_and_gradients(batch.tokens, batch.targets, batch.starts)
    score = model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    assert score.total == pytest.approx(expected.total, rel=1e-5)
    assert (score.correct, score.targets) == (expected.correct, expected.targets)
    adapter = model.adapter
    assert list(adapter.additions) == list(linear_maps(config))
    for name, addition in adapter.additions.items():
        dweight = addition.scale * whole.gradients[f"{name}.weight"]
        assert_close(model.gradients[f"{name}.lora_b"], dweight @ adapter[f"{name}.lora_a"].T)
        assert_close(model.gradients[f"{name}.lora_a"], adapter[f"{name}.lora_b"].T @ dweight)


@backends
def test_some_maps_and_other_ranks(backend):
    """Maps without an addition beside maps with one, in one product; ranks and scales of their own."""
    config = CONFIGS["llama"]
    additions = {
        "blocks.0.attention.key": Addition(5, 0.5),
        "blocks.0.feed_forward.up": Addition(1, 2.0),
        "blocks.1.attention.query": Addition(2, 3.0),
        "blocks.1.attention.value": Addition(4, 1.0),
        "blocks.1.feed_forward.down": Addition(40, 0.25),  # more than the map's own rank
    }
    model = open_base(config, "Q8_0", backend)
    model.set_adapter(fill(AdapterParameters(config, additions)))
    whole, batch = merged(model), make_batch(config, LENGTHS)
    whole.zero_gradients()
    assert_close(model.forward(batch.tokens, batch.starts), whole.forward(batch.tokens, batch.starts))
    whole.score_and_gradients(batch.tokens, batch.targets, batch.starts)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    assert len(model.gradients) == 2 * len(additions)
    for name, addition in additions.items():
        dweight = addition.scale * whole.gradients[f"{name}.weight"]
        assert_close(model.gradients[f"{name}.lora_b"], dweight @ model.adapter[f"{name}.lora_a"].T)
        assert_close(model.gradients[f"{name}.lora_a"], model.adapter[f"{name}.lora_b"].T @ dweight)


@backends
def test_gradients_are_the_derivatives_of_the_loss(backend):
    """A central difference in float32: a loss of size 3 is known to 2e-7, of a slope of size 1."""
    model = tuned(CONFIGS["gpt2"], "F16", backend)
    batch = make_batch(model.config, LENGTHS)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    gradient = model.gradients.flat.astype(np.float64)
    direction = (gradient / np.linalg.norm(gradient)).astype(np.float32)
    before, losses = model.adapter.flat.copy(), []
    for shift in (5e-3, -5e-3):
        model.adapter.flat[...] = before + np.float32(shift) * direction
        losses.append(model.loss(batch.tokens, batch.targets, batch.starts))
    slope = (losses[0] - losses[1]) / 1e-2
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=2e-3)


@every_config
@pytest.mark.parametrize("base", ["memory", "Q4_0"])
def test_backends_agree(config, base):
    batch = make_batch(config, LENGTHS)
    models = [tuned(config, base, backend) for backend in ("numba", "numpy")]
    for model in models:
        model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    assert_close(*(model.gradients.flat for model in models))
    assert_close(*(model.forward(batch.tokens, batch.starts) for model in models))


@backends
@pytest.mark.parametrize("base", ["memory", "Q8_0"])
def test_accumulated_gradients_are_added(base, backend):
    model = tuned(CONFIGS["qk norm"], base, backend)
    batch = make_batch(model.config, LENGTHS)
    model.gradients.flat.fill(7)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    once = model.gradients.flat.copy()
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts)
    assert_close(model.gradients.flat, 2 * once)
    model.zero_gradients()
    for part in batch.split(3):
        model.score_and_gradients(part.tokens, part.targets, part.starts, normalizer=batch.target_count)
    assert_close(model.gradients.flat, once)


@backends
def test_a_batch_in_parts_is_the_batch(backend, monkeypatch):
    model = tuned(CONFIGS["llama"], "F16", backend)
    batch = make_batch(model.config, LENGTHS)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    whole = model.gradients.flat.copy()
    monkeypatch.setattr("fastllm.model.ROWS_AT_ONCE", 5)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    assert_close(model.gradients.flat, whole)


@backends
def test_dropout_goes_with_an_adapter(backend):
    """Masks follow from the seed, in the merged model too."""
    model = tuned(dataclasses.replace(CONFIGS["gpt2"], dropout=0.3), "memory", backend)
    whole, batch = merged(model), make_batch(model.config, LENGTHS)
    whole.zero_gradients()
    whole.score_and_gradients(batch.tokens, batch.targets, batch.starts, dropout_seed=5)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, dropout_seed=5, accumulate=False)
    name = "blocks.1.feed_forward.down"
    dweight = model.adapter.additions[name].scale * whole.gradients[f"{name}.weight"]
    assert_close(model.gradients[f"{name}.lora_a"], model.adapter[f"{name}.lora_b"].T @ dweight)


def test_only_the_adapter_has_gradients_and_moments():
    model = tuned(CONFIGS["gpt2"], "Q8_0")
    assert model.trainable is model.adapter
    assert list(model.gradients) == list(model.adapter)
    assert all(name.rpartition(".")[2] in ("lora_a", "lora_b") for name in model.gradients)
    state = fastllm.AdamW(model).state()
    outputs_and_inputs = sum(sum(shape) for shape in linear_maps(model.config).values())
    assert state["first"].size == state["second"].size == model.adapter.flat.size == 3 * outputs_and_inputs
    assert model.is_frozen


# What stays


def bytes_of(parameters):
    if not hasattr(parameters, "packed"):
        return {name: array.tobytes() for name, array in parameters.items()}
    return {
        name: (parameters.packed(name).data if parameters[name].ndim == 2 else parameters[name]).tobytes()
        for name in parameters
    }


@every_config
@every_base
def test_training_moves_the_adapter_alone(config, base):
    model = open_base(config, base, "numba")
    batch = make_batch(config, LENGTHS)
    loss, before = model.loss(batch.tokens, batch.targets, batch.starts), bytes_of(model.parameters)
    logits = model.forward(batch.tokens, batch.starts)
    adapter = model.add_lora(rank=3)
    # b is 0: to the bit, nothing has changed
    np.testing.assert_array_equal(model.forward(batch.tokens, batch.starts), logits)
    first = adapter.flat.copy()
    train(model, steps=10)
    assert bytes_of(model.parameters) == before
    offset = 0
    for name, view in adapter.items():
        assert (view.reshape(-1) != first[offset : offset + view.size]).any(), name
        offset += view.size
    assert model.loss(batch.tokens, batch.targets, batch.starts) < 0.9 * loss
    assert model.is_frozen == (base != "memory")
    model.remove_adapter()
    np.testing.assert_array_equal(model.forward(batch.tokens, batch.starts), logits)


def test_training_gives_the_same_bits_again():
    runs = []
    for _ in range(2):
        model = open_base(CONFIGS["llama"], "Q4_0", "numba")
        model.add_lora(rank=3, seed=4)
        train(model)
        runs.append(model.adapter.flat.tobytes())
    assert runs[0] == runs[1]


def test_a_step_after_the_first_takes_no_memory():
    import tracemalloc

    model = tuned(CONFIGS["llama"], "Q8_0")
    batch = make_batch(model.config, LENGTHS)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    before = model._network.workspace.nbytes
    tracemalloc.start()
    try:
        model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model._network.workspace.nbytes == before
    assert peak < 64 << 10  # views and lists; the activations alone have more


# Adding, removing, merging


@every_config
@every_base
def test_merging_changes_no_logits(config, base):
    model = tuned(config, base)
    batch = make_batch(config, LENGTHS)
    apart, expected = model.forward(batch.tokens, batch.starts), merged(model).forward(batch.tokens, batch.starts)
    assert_close(apart, expected)
    model.merge_adapter()
    assert model.adapter is None and not model.is_frozen
    assert_close(model.forward(batch.tokens, batch.starts), expected)
    # and what is trained then is everything
    assert model.trainable is model.parameters
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
    assert list(model.gradients) == list(model.parameters)


def test_an_adapter_is_not_lost_where_there_is_no_memory_to_merge_it(monkeypatch):
    model = tuned(next(iter(CONFIGS.values())))
    before = model.forward([1, 2, 3])

    def full(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(fastllm.model.np, "empty", full)
        patch.setattr(fastllm.lora.np, "matmul", full)
        with pytest.raises(MemoryError):
            model.merge_adapter()
    assert model.adapter is not None
    np.testing.assert_array_equal(model.forward([1, 2, 3]), before)


def test_defaults():
    model = fastllm.Model(CONFIGS["llama"])
    adapter = model.add_lora()
    assert adapter.additions == dict.fromkeys(linear_maps(model.config), Addition(8, 2.0))
    for name, view in adapter.items():
        if name.endswith("lora_b"):
            assert not view.any()
        else:  # uniform within 1 / sqrt(inputs)
            bound = view.shape[1] ** -0.5
            assert np.abs(view).max() <= bound and np.std(view) == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize(
    ("options", "names", "addition"),
    [
        ({"targets": ("query", "value")}, ("attention.query", "attention.value"), Addition(8, 2.0)),
        ({"targets": ["down"], "rank": 4, "alpha": 2}, ("feed_forward.down",), Addition(4, 0.5)),
        ({"targets": ("gate", "up"), "rank": 16, "rank_stabilized": True}, ("feed_forward.up",), Addition(16, 4.0)),
    ],
)
def test_options(options, names, addition):
    """GPT-2's kind of model has no gate."""
    model = fastllm.Model(CONFIGS["gpt2"])
    expected = {f"blocks.{layer}.{name}": addition for layer in range(2) for name in names}
    assert model.add_lora(**options).additions == expected
    model.remove_adapter()
    assert model.add_lora(LoRAConfig(**options)).additions == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_stabilized": "false"}, "rank_stabilized must be true or false; got 'false'"),
        ({"targets": ("query", "query")}, "targets must be different names"),
        ({"rank": 0}, "rank must be a whole number from 1 to 65535; got 0"),
        ({"rank": 1 << 16}, "got 65536"),
        ({"rank": 2.0}, "got 2.0"),
        ({"rank": True}, "got True"),
        ({"alpha": 0}, "alpha must be a finite number > 0; got 0"),
        ({"alpha": float("nan")}, "got nan"),
        ({"alpha": "16"}, "got '16'"),
        ({"targets": ()}, "targets must be names from query, key, .*; got ()"),
        ({"targets": ("query", "q_proj")}, "got ('query', 'q_proj')"),
        ({"targets": "query"}, "targets must be .*; got 'query'"),
        ({"targets": 3}, "targets must be .*; got 3"),
        ({"targets": ([],)}, "targets must be"),
    ],
)
def test_wrong_options(options, message):
    model = fastllm.Model(CONFIGS["gpt2"])
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
        model.add_lora(**options)
    assert model.adapter is None


def test_maps_that_a_model_has_not():
    config = CONFIGS["rustgpt"]  # without an output layer
    with pytest.raises(ConfigError, match="has none of output"):
        fastllm.Model(config).add_lora(targets=("output", "gate"))
    with pytest.raises(ConfigError, match=r"got 'blocks.0.attention.output'; its maps are blocks.0.attention.query"):
        AdapterParameters(config, {"blocks.0.attention.output": Addition(1, 1.0)})
    assert additions_of(config, LoRAConfig()).keys() == linear_maps(config).keys()


def test_wrong_use():
    model = fastllm.Model(CONFIGS["gpt2"])
    with pytest.raises(ValueError, match="needs an adapter; got a model without"):
        model.merge_adapter()
    model.remove_adapter()  # nothing to do
    with pytest.raises(ValueError, match="give a LoRAConfig or its fields; got both"):
        model.add_lora(LoRAConfig(), rank=3)
    adapter = model.add_lora(rank=2)
    with pytest.raises(ValueError, match="a model has one adapter; got a second"):
        model.add_lora()
    assert model.adapter is adapter
    double = fastllm.Model(CONFIGS["gpt2"], backend="numpy", dtype=np.float64)
    with pytest.raises(ValueError, match="float32; got float64"):
        double.add_lora()
    with pytest.raises(ValueError, match="of a model like this one"):
        model.set_adapter(AdapterParameters(CONFIGS["llama"], additions_of(CONFIGS["llama"], LoRAConfig())))
    wider = dataclasses.replace(CONFIGS["gpt2"], hidden=96)
    with pytest.raises(ValueError, match="of a model like this one"):
        model.set_adapter(AdapterParameters(wider, additions_of(wider, LoRAConfig())))
    assert model.adapter is adapter


def test_an_optimizer_of_what_is_no_longer_trained():
    """It would update arrays of another size."""
    model = fastllm.Model(CONFIGS["gpt2"])
    optimizer = fastllm.AdamW(model)
    model.add_lora(rank=2)
    batch = make_batch(model.config, LENGTHS)
    model.score_and_gradients(batch.tokens, batch.targets, batch.starts)
    with pytest.raises(ValueError, match="make a new optimizer"):
        optimizer.step(1e-3)


# Generating


@pytest.mark.parametrize("base", ["memory", "Q4_0"])
@pytest.mark.parametrize("config", [CONFIGS["gpt2"], CONFIGS["qk norm"]], ids=["gpt2", "qk norm"])
@backends
def test_decoding_equals_reading_all(config, base, backend, rng):
    model = tuned(config, base, backend)
    tokens = rng.integers(0, config.vocab_size, 9, dtype=np.int32)
    expected = model.forward(tokens)
    cache = model.new_cache()
    assert_close(model.prefill(tokens[:4], None, cache)[0], expected[3])
    is_rounded = backend == "numba" and base.startswith("Q") and ROUNDED  # to 16 bits, on the way
    tolerance = 2e-4 if is_rounded else TOLERANCE
    for position in range(4, 9):
        assert_close(model.decode(tokens[position : position + 1], cache)[0], expected[position], tolerance)


def test_each_text_has_the_bits_that_it_has_alone(rng):
    """With an adapter, too: side by side, in one piece or in several."""
    model = tuned(CONFIGS["llama"], "Q8_0")
    texts = rng.integers(0, model.config.vocab_size, (20, 8), dtype=np.int32)
    together = model.new_cache(20)
    logits = [model.prefill(texts[:, :5].reshape(-1), np.arange(0, 101, 5), together)]
    logits += [model.decode(texts[:, position], together) for position in range(5, 8)]
    for i, text in enumerate(texts):
        alone = model.new_cache()
        model.prefill(text[:2], None, alone)
        np.testing.assert_array_equal(model.prefill(text[2:5], None, alone)[0], logits[0][i])
        for position in range(5, 8):
            decoded = model.decode(text[position : position + 1], alone)
            np.testing.assert_array_equal(decoded[0], logits[position - 4][i])


def test_packed_matrices_stay_views():
    """Neither adding nor removing copies what a file holds."""
    model = open_base(CONFIGS["llama"], "Q8_0", "numba")
    data = model.parameters.packed("blocks.0.attention.query.weight").data
    model.add_lora()
    train(model, steps=1)
    model.remove_adapter()
    assert model.parameters.packed("blocks.0.attention.query.weight").data is data
    assert isinstance(model.parameters.packed("head.weight"), Packed)
    assert dequantize(model.parameters.packed("head.weight")).shape == (23, 32)
