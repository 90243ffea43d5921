"""Adapters' files from strangers: one error, whatever is wrong with them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_switches import make_model
from mutations import damaged
from tiny_adapters import (
    CONFIG,
    GPT2,
    LLAMA,
    WEIGHTS,
    assert_same_changes,
    changes_of,
    filled,
    rewrite,
    rewrite_weights,
    write,
)

import fastllm
from fastllm.adapters import read_adapter, write_adapter
from fastllm.errors import FormatError
from fastllm.lora import Addition, LoRAConfig, additions_of, linear_maps

WRONG_CONFIGS = {
    "kind": ({"peft_type": "IA3"}, "peft_type must be .*got 'IA3'"),
    "no kind": ({"peft_type": None}, "peft_type must be .*got None"),
    "DoRA": ({"use_dora": True}, "use_dora must not be given: fastllm has no DoRA"),
    "modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save must not be given"),
    "biases": ({"bias": "lora_only"}, "bias must be \"none\"; got 'lora_only'"),
    "bias of B": ({"lora_bias": True}, "lora_bias must not be given"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices must not"),
    "parameters": ({"target_parameters": ["x"]}, "target_parameters must not"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights must leave .*got 'pissa_niter_4'"),
    "one": ({"init_lora_weights": 1}, "init_lora_weights must leave .*got 1"),
    "alpha": ({"lora_alpha": -1}, "lora_alpha must be a number > 0; got -1"),
    "large alpha": ({"lora_alpha": 10**400}, "lora_alpha must be a number > 0"),
    "list of alphas": ({"lora_alpha": [1]}, "lora_alpha must be a number > 0"),
    "alpha in a pattern": ({"alpha_pattern": {"q_proj": None, "k_proj": 0}}, "alpha_pattern must be a number"),
    "alphas in a list": ({"alpha_pattern": [1]}, "alpha_pattern must map names of modules to numbers; got"),
    "alpha of a pattern": ({"alpha_pattern": {"(q|k)_proj": 2}}, r"must be names of modules, .*; got '\(q\|k\)_proj'"),
    "root": ({"use_rslora": "yes"}, "use_rslora must be true or false; got 'yes'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_wrong_configurations(tmp_path, changes, message):
    write(tmp_path / "adapter")
    rewrite(tmp_path / "adapter", **changes)
    with pytest.raises(FormatError, match=message) as caught:
        read_adapter(LLAMA, tmp_path / "adapter")
    assert str(tmp_path / "adapter") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


RIGHT_CONFIGS = {
    "defaults": {"lora_dropout": 0.1, "unknown": [1], "init_lora_weights": None, "bias": None, "inference_mode": False},
    "how it was made": {"target_modules": r".*_proj", "exclude_modules": "(", "layers_to_transform": 3, "r": 77,
                        "rank_pattern": {"(": "a"}},
    "beginning": {"init_lora_weights": "gaussian"},
}  # fmt: skip


@pytest.mark.parametrize("changes", RIGHT_CONFIGS.values(), ids=RIGHT_CONFIGS)
def test_other_configurations(tmp_path, changes):
    adapter = write(tmp_path)
    rewrite(tmp_path, **changes)
    assert_same_changes(changes_of(read_adapter(LLAMA, tmp_path)), changes_of(adapter))


Q = "base_model.model.model.layers.0.self_attn.q_proj"
WRONG_WEIGHTS = {
    "embedding": (lambda t: t.update({"base_model.model.model.embed_tokens.weight": t[f"{Q}.lora_A.weight"]}),
                  "got 'base_model.model.model.embed_tokens.weight' too, of the embedding or head; merge the adapter"),
    "embedding adapter": (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.ones(3)}),
                          "got 'base_model.model.model.embed_tokens.lora_embedding_A'"),
    "magnitudes": (lambda t: t.update({f"{Q}.lora_magnitude_vector": np.ones(3, np.float32)}), "lora_magnitude_vec"),
    "head": (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.ones((3, 8), np.float32)}), "lm_head"),
    "layer": (lambda t: t.update({Q.replace("0", "2") + ".lora_A.weight": np.ones((3, 8), np.float32)}), "layers.2"),
    "no prefix": (lambda t: {name.removeprefix("base_model."): tensor for name, tensor in t.items()}, "got 'model"),
    "no A": (lambda t: t.pop(f"{Q}.lora_A.weight") is None or None, "got None and"),
    "no B": (lambda t: t.pop(f"{Q}.lora_B.weight") is None or None, r"got \(3, 8\) and None"),
    "inputs": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((3, 9), np.float32)}), r"got \(3, 9\)"),
    "outputs": (lambda t: t.update({f"{Q}.lora_B.weight": np.ones((9, 3), np.float32)}), r"got .* and \(9, 3\)"),
    "ranks": (lambda t: t.update({f"{Q}.lora_B.weight": np.ones((8, 2), np.float32)}), r"got .* and \(8, 2\)"),
    "rank 0": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((0, 8), np.float32),
                                   f"{Q}.lora_B.weight": np.ones((8, 0), np.float32)}), r"got \(0, 8\) and \(8, 0\)"),
    "a number": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((), np.float32)}), r"got \(\) and"),
    "whole numbers": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((3, 8), np.int32)}), "must be of F32"),
    "NaN": (lambda t: t[f"{Q}.lora_A.weight"].fill(np.nan), "lora_A.weight must be finite"),
    "nothing": (lambda t: {}, "of at least one module; got none"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_wrong_weights(tmp_path, change, message):
    write(tmp_path / "adapter")
    rewrite_weights(tmp_path / "adapter", change)
    with pytest.raises(FormatError, match=message) as caught:
        read_adapter(LLAMA, tmp_path / "adapter")
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_missing(tmp_path):
    model = make_model(LLAMA, "numpy")
    with pytest.raises(FileNotFoundError, match="there must be an adapter's folder"):
        fastllm.load_adapter(model, tmp_path / "adapter")
    write(tmp_path / "adapter")
    weights = (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(FormatError, match="a pickle, which runs code"):
        fastllm.load_adapter(model, tmp_path / "adapter")
    weights.unlink()
    with pytest.raises(FormatError, match=f"must hold {WEIGHTS}; got no such file"):
        fastllm.load_adapter(model, tmp_path / "adapter")
    (tmp_path / "adapter" / CONFIG).unlink()
    with pytest.raises(FormatError, match=f"must hold an adapter, with {CONFIG}; got none"):
        fastllm.load_adapter(model, tmp_path / "adapter")
    assert model.adapter is None


def test_an_adapter_of_another_model(tmp_path):
    write(tmp_path, GPT2)
    model = make_model(LLAMA, "numpy")
    with pytest.raises(FormatError, match="use an adapter made for this model"):
        fastllm.load_adapter(model, tmp_path)
    assert model.adapter is None


def test_an_adapter_of_another_job(tmp_path):
    write(tmp_path, GPT2, LoRAConfig(rank=3))
    for lora in (LoRAConfig(rank=2), LoRAConfig(rank=3, targets=("query", "value"))):
        with pytest.raises(FormatError, match=r"the job's \[lora\].*; put that back as it was, or start a new run"):
            read_adapter(GPT2, tmp_path, additions_of(GPT2, lora))
    more = additions_of(GPT2, LoRAConfig(rank=3, targets=("query", "value")))
    write_adapter(tmp_path, GPT2, filled(GPT2, additions_of(GPT2, LoRAConfig(rank=3, targets=("up",)))), None)
    with pytest.raises(FormatError, match="start a new run"):
        read_adapter(GPT2, tmp_path, more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    write(folder, GPT2)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@given(data=st.data())
def test_damaged_bytes_never_raise_another_error(tmp_path_factory, whole, name, data):
    folder = tmp_path_factory.mktemp("damaged")
    try:
        for other, content in whole.items():
            (folder / other).write_bytes(content)
        (folder / name).write_bytes(data.draw(damaged(whole[name])))
        try:
            adapter = read_adapter(GPT2, folder)
        except FormatError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            return
        assert np.isfinite(adapter.flat).all()
    finally:
        shutil.rmtree(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("q_proj"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


keys = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias", "target_modules", "exclude_modules", "use_rslora",
        "layers_to_transform", "layers_pattern", "peft_type", "init_lora_weights", "modules_to_save"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(keys), json_values))
def test_no_configuration_breaks_the_reader(tmp_path_factory, whole, fields):
    folder = tmp_path_factory.mktemp("odd")
    try:
        for other, content in whole.items():
            (folder / other).write_bytes(content)
        rewrite(folder, **fields)
        try:
            read_adapter(GPT2, folder)
        except FormatError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
    finally:
        shutil.rmtree(folder)


def test_an_alpha_for_each_module(tmp_path):
    """As tools that choose ranks write them."""
    config = dataclasses.replace(LLAMA, layers=30)
    additions = {name: Addition(1 + i % 3, 1.0 + i % 2) for i, name in enumerate(linear_maps(config))}
    adapter = filled(config, additions)
    write_adapter(tmp_path, config, adapter, None)
    assert len(json.loads((tmp_path / CONFIG).read_text())["alpha_pattern"]) > 90
    assert_same_changes(changes_of(read_adapter(config, tmp_path)), changes_of(adapter))


@pytest.mark.parametrize(
    ("key", "layers"),
    [
        ("q_proj", [0, 1]),
        ("^q_proj", []),
        ("^model.layers.1.self_attn.q_proj$", [1]),
        (r"^model\.layers\.1\.self_attn\.q_proj", [1]),
        ("layers.1.self_attn.q_proj", [1]),
        ("^layers.1.self_attn.q_proj", []),
    ],
)
def test_a_key_with_a_begin_is_for_whole_names(tmp_path, key, layers):
    """As in PEFT, whose module names begin with "model."."""
    write(tmp_path)
    before = read_adapter(LLAMA, tmp_path).additions
    rewrite(tmp_path, alpha_pattern={key: 48})
    after = read_adapter(LLAMA, tmp_path).additions
    changed = [name for name in after if after[name] != before[name]]
    assert changed == [f"blocks.{layer}.attention.query" for layer in layers]
