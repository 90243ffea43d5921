"""Models whose weights stay as a file keeps them."""

import dataclasses

import numpy as np
import pytest

import fastllm
from fastllm.packed import KINDS, Packed
from fastllm.parameters import FileParameters, Parameters
from fastllm.quantize import dequantize, quantize

CONFIG = fastllm.preset(
    "nano", vocab_size=47, width=64, hidden=96, layers=2, heads=4, kv_heads=2, context=40, attention_bias=True
)
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def weights_of(model, kind):
    """A model's parameters as a file of one kind would hold them, read-only."""
    weights = {}
    for name, array in model.parameters.items():
        is_matrix = array.ndim == 2 and name != "embedding.position.weight"
        weights[name] = quantize(array, kind) if is_matrix else array.copy()
        (weights[name].data if is_matrix else weights[name]).flags.writeable = False
    return weights


def pair(kind, backend="numba", config=CONFIG):
    """A model on packed weights, and one on the same numbers in float32."""
    weights = weights_of(fastllm.Model(config, seed=3), kind)
    frozen = fastllm.Model(config, backend=backend, weights=weights)
    dense = fastllm.Model(config, backend=backend)
    for name, view in dense.parameters.items():
        view[...] = dequantize(weights[name]) if isinstance(weights[name], Packed) else weights[name]
    return frozen, dense


kinds = pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
backends = pytest.mark.parametrize("backend", ["numba", "numpy"])
OTHERS = {
    "gpt2": {"norm": "layernorm", "positions": "learned", "activation": "gelu_tanh", "feed_forward_bias": True},
    "untied": {"tied_head": False, "head_bias": True},
    "qwen3": {"qk_norm": True, "attention_bias": False, "head_size": 32},
    "post": {"norm_position": "post", "final_norm": False, "attention_output": False, "kv_heads": 4},
}


@kinds
@backends
def test_forward_prefill_and_decode_equal_float32(kind, backend):
    frozen, dense = pair(kind, backend)
    tokens = np.random.default_rng(0).integers(0, 47, (2, 20))
    expected = dense.forward(tokens)
    np.testing.assert_allclose(frozen.forward(tokens), expected, **CLOSE)
    cache = frozen.new_cache(2)
    np.testing.assert_allclose(frozen.prefill(tokens[:, :17], None, cache), expected[:, 16], **CLOSE)
    for t in range(17, 20):
        np.testing.assert_allclose(frozen.decode(tokens[:, t], cache), expected[:, t], **CLOSE)
    assert frozen.is_frozen


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_other_architectures(changes):
    config = dataclasses.replace(CONFIG, attention_output_bias=None, **changes)
    frozen, dense = pair("Q8_0", config=config)
    tokens = np.random.default_rng(0).integers(0, 47, 20)
    expected = dense.forward(tokens)
    np.testing.assert_allclose(frozen.forward(tokens), expected, **CLOSE)
    cache = frozen.new_cache()
    frozen.prefill(tokens[:-1], None, cache)
    np.testing.assert_allclose(frozen.decode(tokens[-1:], cache)[0], expected[-1], **CLOSE)
    assert frozen.score(tokens[:-1], tokens[1:]).loss == pytest.approx(dense.score(tokens[:-1], tokens[1:]).loss)


def test_what_trains_copies_the_weights_once():
    frozen, dense = pair("Q4_0")
    before = frozen.parameters["blocks.0.feed_forward.up.weight"].copy()
    tokens = np.random.default_rng(0).integers(0, 47, (2, 21))
    optimizers = [fastllm.AdamW(model) for model in (frozen, dense)]
    assert not frozen.is_frozen
    for _ in range(3):
        scores = [
            model.score_and_gradients(tokens[:, :-1], tokens[:, 1:], accumulate=False) for model in (frozen, dense)
        ]
        assert scores[0] == scores[1]
        for optimizer in optimizers:
            optimizer.step(1e-3)
    assert frozen.parameters.flat.tobytes() == dense.parameters.flat.tobytes()
    assert (frozen.parameters["blocks.0.feed_forward.up.weight"] != before).any()


def test_rows_of_a_decoding_step_have_the_bits_of_one_alone():
    """For any number of rows up to 32; of all kinds' products, see test_kernel_edges.py."""
    tokens = np.random.default_rng(0).integers(0, 47, 32)
    for kind in ("F32", "F16", "Q8_0", "Q4_0"):
        frozen, _ = pair(kind)
        alone = np.concatenate([frozen.decode([token], frozen.new_cache()) for token in tokens])
        for count in (1, 2, 3, 5, 8, 31, 32):
            together = frozen.decode(tokens[:count], frozen.new_cache(count))
            np.testing.assert_array_equal(together, alone[:count])


def test_more_rows_than_that_are_close(rng):
    frozen, _ = pair("Q8_0")
    tokens = rng.integers(0, 47, 40)
    alone = np.concatenate([frozen.decode([token], frozen.new_cache()) for token in tokens])
    np.testing.assert_allclose(frozen.decode(tokens, frozen.new_cache(40)), alone, **CLOSE)


def test_parameters_of_a_file_are_read_and_not_written():
    frozen, dense = pair("Q8_0")
    assert frozen.parameters.keys() == dense.parameters.keys()
    for name, array in frozen.parameters.items():
        np.testing.assert_array_equal(array, dense.parameters[name])
    with pytest.raises(ValueError, match="read-only"):
        frozen.parameters["final_norm.weight"][...] = 0
    assert isinstance(frozen.parameters, FileParameters)
    assert isinstance(frozen.unfreeze(), Parameters)
    np.testing.assert_array_equal(frozen.parameters.flat, dense.parameters.flat)


def test_wrong_weights():
    weights = weights_of(fastllm.Model(CONFIG), "Q8_0")
    missing = {name: array for name, array in weights.items() if name != "final_norm.weight"}
    with pytest.raises(ValueError, match=r"missing: \['final_norm.weight'\]"):
        fastllm.Model(CONFIG, weights=missing)
    name = "blocks.1.attention.key.weight"
    short = Packed(weights[name].data[:-1], KINDS["Q8_0"])
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        fastllm.Model(CONFIG, weights=weights | {name: short})
    with pytest.raises(ValueError, match="unknown: "):
        fastllm.Model(CONFIG, weights=weights | {"spare": short})
    with pytest.raises(ValueError, match=f"{name} must be floats; got int8"):
        fastllm.Model(CONFIG, weights=weights | {name: np.zeros((32, 64), np.int8)})


def test_activations_of_layers_share_memory_unless_they_are_kept():
    model = fastllm.Model(dataclasses.replace(CONFIG, layers=6))
    tokens = np.arange(40) % 47
    logits = model.forward(tokens)
    taken = model._network.workspace.nbytes
    attention, feed_forward = model.blocks[0].attention, model.blocks[5].feed_forward
    assert attention.qkv.array.ctypes.data == feed_forward.before.array.ctypes.data
    np.testing.assert_array_equal(model.forward(tokens, keep=True), logits)
    assert model._network.workspace.nbytes > 3 * taken
    assert len({block.end.array.ctypes.data for block in model.blocks}) == 6
    np.testing.assert_array_equal(model.forward(tokens), logits)
