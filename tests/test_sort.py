"""A trained GPT that sorts six digits: every activation it was published with, and every input sorted."""

import numpy as np
import pytest

import fastllm
from fastllm import kernels
from fastllm.formats.huggingface import from_huggingface
from fastllm.formats.huggingface_config import config_from_huggingface
from fastllm.kernels import reference

DIGITS = 6
CONTEXT = 11  # six to sort and the first five sorted

# Of the largest number in an activation. float32 rounds to 6e-8; through three blocks, on both sides, that
# comes to 7e-7. The smallest mistake that must not pass, GELU by erf instead of tanh, makes 1e-4 at once and
# 1e-3 in the end.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "gpt-nano-sort"


@pytest.fixture(scope="module")
def partials(folder):
    with np.load(folder / "partials.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["numpy", "numba"])
def model(request, folder):
    config = config_from_huggingface(
        {
            "model_type": "gpt2",
            "vocab_size": 3,
            "n_positions": CONTEXT,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 3,
            "tie_word_embeddings": False,
        }
    )
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        # minGPT's names are GPT-2's, but its linear weights are (out, in)
        tensors = {name: array.T if is_linear(name) else array for name, array in arrays.items()}
    model = fastllm.Model(config, backend=request.param)
    model.parameters.load(from_huggingface(config, tensors))
    return model


def is_linear(name):
    return name.endswith(".weight") and (".attn." in name or ".mlp." in name)


def activations(model, tokens):
    """What the layers keep of a forward pass over tokens (B, T), by the names it was published under.

    Those of one block are of the first; query, key, value and scores are (B, H, T, D) and (B, H, T, T).
    """
    logits = model.forward(tokens, keep=True)
    probabilities = np.empty_like(logits).reshape(-1, logits.shape[-1])
    softmax_forward = (kernels if model.backend == "numba" else reference).softmax_forward
    softmax_forward(probabilities, logits.reshape(probabilities.shape))

    (count, length), heads = tokens.shape, model.config.heads
    block, x = model.blocks[0], model.embedding.out.array
    attention, feed_forward = block.attention, block.feed_forward
    split = attention.qkv.array.reshape(count, length, 3, heads, -1)
    query, key, value = split.transpose(2, 0, 3, 1, 4)
    scores = attention.scale * query @ key.swapaxes(2, 3)
    scores[..., ~np.tri(length, dtype=bool)] = -np.inf
    lse = attention.lse.array.reshape(count, length, heads).swapaxes(1, 2)
    return {
        "tok_emb": model.embedding.tokens[tokens],
        "pos_emb": model.embedding.positions[:length],
        "x": x,
        "ln1": block.attention_norm.out.array,
        "qkv": attention.qkv.array,
        "q": query,
        "k": key,
        "v": value,
        "att": scores,
        "attSm": np.exp2(scores / np.log(2) - lse[..., None]),
        "y": attention.mixed.array,
        "yProj": block.middle.array - x,
        "attnResid": block.middle.array,
        "ln2": block.feed_forward_norm.out.array,
        "fc": feed_forward.before.array,
        "gelu": feed_forward.after.array,
        "mlp": block.end.array - block.middle.array,
        "mlpResid": block.end.array,
        **{f"block{i}": block.end.array for i, block in enumerate(model.blocks)},
        "ln_f": model.final_norm.out.array,
        "lm_head": logits,
        "probs": probabilities,
    }


def test_every_activation(model, partials):
    expected = dict(partials)
    got = activations(model, expected.pop("idx").astype(np.int32))
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        mine = got[name].reshape(array.shape)
        seen = np.isfinite(array)  # -inf: the scores of later rows
        np.testing.assert_array_equal(mine[~seen], array[~seen], err_msg=name)
        error = np.abs(mine[seen] - array[seen]).max() / np.abs(array[seen]).max()
        assert error <= TOLERANCE, f"{name}: off by {error:.1e} of its largest number"


def test_all_inputs_are_sorted(model):
    inputs = np.indices((3,) * DIGITS, dtype=np.int32).reshape(DIGITS, -1).T  # (729, 6)
    cache = model.new_cache(len(inputs))
    logits = model.prefill(inputs, None, cache)
    outputs = [logits.argmax(axis=1)]
    while len(outputs) < DIGITS:
        outputs.append(model.decode(outputs[-1], cache).argmax(axis=1))
    np.testing.assert_array_equal(np.stack(outputs, axis=1), np.sort(inputs, axis=1))
