"""Checkpoints that others have changed, or earlier versions wrote: what stands there counts."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from saved_models import load, rewrite_config, rewrite_theirs

import fastllm
from fastllm.checkpoint import CONFIG, GENERATION, OPTIMIZER, WEIGHTS, load_progress
from fastllm.errors import FormatError
from fastllm.formats.safetensors_file import TensorToWrite, write_safetensors


def test_what_is_changed_in_hugging_faces_words_counts(saved):
    """By a person, or by transformers, which keeps what it doesn't know."""
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    rewrite_theirs(saved, max_position_embeddings=64, rope_scaling=linear)
    rewrite_theirs(saved, GENERATION, do_sample=True, temperature=0.7, eos_token_id=[1, 3])
    model, _ = load(saved)
    assert (model.config.context, model.config.rope_scaling["factor"]) == (64, 4.0)
    assert model.generation_options == {"temperature": 0.7, "top_k": 50, "end_ids": (1, 3)}
    (saved / GENERATION).unlink()
    assert load(saved)[0].generation_options == {}


def test_words_that_hugging_face_lacks_come_back(tmp_path, tiny_model, tokenizer):
    config = dataclasses.replace(tiny_model.config, dropout=0.25, initial_std=0.5)
    model = fastllm.Model(config, backend="numpy")
    model.generation_options = {"max_tokens": 5, "temperature": 0.7, "stop": ("x",), "end_ids": (2, 3)}
    fastllm.save(tmp_path / "model", model, tokenizer)
    again = load(tmp_path / "model")[0]
    assert again.config == config
    assert again.generation_options == {**model.generation_options, "stop": ["x"], "top_k": 0}
    theirs = json.loads((tmp_path / "model" / GENERATION).read_text())
    assert (theirs["max_new_tokens"], theirs["top_k"], "stop_strings" in theirs) == (5, 0, False)
    own = json.loads((tmp_path / "model" / CONFIG).read_text())["fastllm"]
    assert own["model"].keys() == {"dropout", "initial_std"}


def test_a_head_that_is_no_longer_tied(tmp_path, tokenizer):
    """As transformers saves it, once it has other numbers."""
    config = fastllm.ModelConfig(vocab_size=tokenizer.vocab_size, width=8, hidden=8, layers=1, heads=2, context=16)
    fastllm.save(tmp_path / "model", fastllm.Model(config, backend="numpy"), tokenizer)
    arrays = safetensors.numpy.load_file(tmp_path / "model" / WEIGHTS)
    for factor, is_tied in ((1, True), (2, False)):
        arrays["lm_head.weight"] = arrays["transformer.wte.weight"] * np.float32(factor)
        safetensors.numpy.save_file(arrays, tmp_path / "model" / WEIGHTS)
        model, _ = load(tmp_path / "model")
        assert model.config.tied_head is is_tied
    np.testing.assert_array_equal(model.parameters["head.weight"], 2 * model.parameters["embedding.token.weight"])


def test_a_checkpoint_of_version_3(saved):
    """Which sampled from all tokens where it didn't say from how many."""
    rewrite_theirs(saved, GENERATION, do_sample=True, temperature=0.7)
    assert load(saved)[0].generation_options == {"temperature": 0.7, "top_k": 50}
    rewrite_config(saved, version=3)
    assert load(saved)[0].generation_options == {"temperature": 0.7}


def test_a_checkpoint_of_version_2(saved, tiny_model):
    """Which says all of the model in our words, too."""
    model = {**tiny_model.config.to_dict(), "rope_interleaved": False}
    rewrite_config(saved, version=2, model=model, generation={"temperature": 0.5})
    rewrite_theirs(saved, GENERATION, top_k=7)
    again = load(saved)[0]
    assert again.config == tiny_model.config
    assert again.generation_options == {"temperature": 0.5}


def test_more_layers_than_tensors_in_our_own_format(tmp_path, tokenizer):
    """Their names alone would take gigabytes."""
    config = fastllm.preset("rustgpt", vocab_size=tokenizer.vocab_size, width=8, hidden=12, layers=1, context=16)
    fastllm.save(tmp_path / "model", fastllm.Model(config, backend="numpy"), tokenizer)
    rewrite_theirs(tmp_path / "model", model={**config.to_dict(), "layers": 10**5})
    with pytest.raises(FormatError, match=r"model\.safetensors: a model of 100000 layers must have more tensors"):
        load(tmp_path / "model")


def test_a_long_number_for_a_token(saved):
    """Longer than what Python turns into a number."""
    rewrite_config(saved, generation={"logit_bias": {"9" * 5000: 1}})
    with pytest.raises(FormatError, match=r"config\.json: logit_bias must be a mapping") as raised:
        load(saved)
    assert len(str(raised.value)) < 600


def test_a_model_with_rope_on_pairs_comes_back_with_rope_on_halves(tmp_path, tokenizer):
    """As Hugging Face has it: the rows of queries and keys are in another order, and the logits are the same."""
    config = fastllm.preset(
        "llama", vocab_size=tokenizer.vocab_size, width=16, hidden=12, layers=1, heads=2, kv_heads=1, context=16,
        rope_interleaved=True,
    )  # fmt: skip
    model = fastllm.Model(config, backend="numpy")
    fastllm.save(tmp_path / "model", model, tokenizer)
    again, _ = load(tmp_path / "model")
    assert again.config == dataclasses.replace(config, rope_interleaved=False)
    tokens = np.arange(12)
    np.testing.assert_allclose(again.forward(tokens), model.forward(tokens), rtol=1e-4, atol=1e-6)


def test_weights_of_bfloat16(saved, tiny_model):
    """As transformers saves a model that it was told to have in them; and float16."""
    arrays = safetensors.numpy.load_file(saved / WEIGHTS)
    for dtype in ("BF16", "F16"):
        halves = {
            name: (array.view(np.uint32) >> 16).astype("<u2") if dtype == "BF16" else array.astype("<f2")
            for name, array in arrays.items()
        }
        write_safetensors(
            saved / WEIGHTS,
            [
                TensorToWrite(name, dtype, array.shape, lambda array=array: iter([array.reshape(-1).view(np.uint8)]))
                for name, array in halves.items()
            ],
        )
        again = load(saved)[0].parameters.flat
        np.testing.assert_allclose(again, tiny_model.parameters.flat, rtol=2**-7, atol=1e-6)
        assert again.tobytes() != tiny_model.parameters.flat.tobytes()


def test_an_optimizers_file_is_named_once(saved, tiny_model, tokenizer):
    fastllm.save(saved, tiny_model, tokenizer, fastllm.Adam(tiny_model))
    path = saved / OPTIMIZER
    for damage in (lambda: path.write_bytes(path.read_bytes()[:300]), path.unlink):
        damage()
        with pytest.raises(FormatError) as raised:
            load_progress(saved, fastllm.Adam(tiny_model))
        assert str(raised.value).count(OPTIMIZER) == 1
