"""Hugging Face's configurations and names: what is understood, what is refused, and with which words."""

import doctest
import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import FormatError, ModelConfig
from fastllm.formats import huggingface_config
from fastllm.formats.huggingface import from_huggingface, to_huggingface
from fastllm.formats.huggingface_config import config_from_huggingface, config_to_huggingface
from fastllm.parameters import Parameters, initialise

GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_positions": 5, "n_embd": 6, "n_layer": 2, "n_head": 2}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 5,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_the_example_in_the_docstring():
    result = doctest.testmod(huggingface_config)
    assert result.attempted > 0
    assert result.failed == 0


def random_parameters(config):
    parameters = Parameters(config)
    initialise(parameters, config, seed=0)
    parameters.flat += np.arange(len(parameters.flat), dtype=np.float32)  # no two alike
    return parameters


def test_gpt2_by_default():
    """GPT-2's own file leaves out fields that have default values."""
    assert config_from_huggingface(GPT2) == ModelConfig(
        vocab_size=11,
        width=6,
        hidden=24,
        layers=2,
        heads=2,
        context=5,
        norm="layernorm",
        norm_position="pre",
        norm_eps=1e-5,
        activation="gelu_tanh",
        positions="learned",
        attention_bias=True,
        feed_forward_bias=True,
        tied_head=True,
    )


def test_gpt2_by_other_names():
    """transformers takes the other name where both are there; the sizes of tensors can't tell who is wrong on heads."""
    others = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
              "n_positions": "max_position_embeddings"}  # fmt: skip
    renamed = {others.get(name, name): value for name, value in GPT2.items()}
    expected = config_from_huggingface(GPT2)
    for config in (renamed, GPT2 | renamed, dict.fromkeys(others) | renamed, dict.fromkeys(others.values()) | GPT2):
        assert config_from_huggingface(config) == expected
    if importlib.util.find_spec("transformers"):
        from transformers import GPT2Config

        assert {theirs: ours for ours, theirs in others.items()} == GPT2Config.attribute_map
    for ours, theirs in others.items():
        message = rf"{ours} and {theirs} are one number; got {GPT2[ours]} and 3; .*\(transformers takes {theirs}\)"
        with pytest.raises(FormatError, match=message):
            config_from_huggingface(GPT2 | {theirs: 3})


def test_llama_by_default():
    assert config_from_huggingface(LLAMA) == ModelConfig(
        vocab_size=11,
        width=8,
        hidden=10,
        layers=2,
        heads=4,
        kv_heads=2,
        context=5,
        norm="rms_norm",
        norm_eps=1e-6,
        activation="swiglu",
        positions="rope",
        rope_theta=10000.0,
        attention_bias=False,
        feed_forward_bias=False,
        tied_head=False,
    )


@pytest.mark.parametrize(
    ("keys", "theta", "scaling"),
    [
        ({"rope_theta": 500.0, "rope_scaling": None}, 500.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10000.0, {"type": "linear", "factor": 2.0}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}},
            5e5,
            {"type": "llama3", **LLAMA3_SCALING},
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, None),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 3}},
            7.0,
            {"type": "linear", "factor": 3},
        ),
    ],
)
def test_rope_as_transformers_4_and_5_write_it(keys, theta, scaling):
    config = config_from_huggingface({**LLAMA, **keys})
    assert config.rope_theta == theta
    assert config.rope_scaling == scaling


# What stands in the config.json of published models, as far as it touches the computation.
PUBLISHED = {
    "SmolLM2-135M": (
        {
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "vocab_size": 49152,
            "rms_norm_eps": 1e-5, "rope_theta": 100000, "rope_scaling": None, "rope_interleaved": False,
            "tie_word_embeddings": True, "attention_bias": False, "hidden_act": "silu", "is_llama_config": True,
        },
        {"head_size": 64, "kv_heads": 3, "context": 8192, "rope_theta": 100000, "tied_head": True},
    ),
    "Llama-3.2-1B": (
        {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
            "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True,
            "attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "pretraining_tp": 1,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
        },
        {"head_size": 64, "context": 131072, "rope_scaling": {"type": "llama3", **LLAMA3_SCALING, "factor": 32.0,
         "original_max_position_embeddings": 8192}},
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
            "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
            "tie_word_embeddings": False, "hidden_act": "silu",
        },
        {"head_size": 128, "context": 4096, "attention_bias": False, "tied_head": False},  # what the window sees
    ),
    "Mistral-7B-v0.3": (
        {
            "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
            "vocab_size": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None,
            "tie_word_embeddings": False, "hidden_act": "silu", "attention_dropout": 0.0,
        },
        {"context": 32768, "rope_theta": 1e6},
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "max_window_layers": 24, "sliding_window": 32768, "use_sliding_window": False, "vocab_size": 151936,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "hidden_act": "silu",
        },
        {"context": 32768, "attention_bias": True, "attention_output_bias": False, "qk_norm": False, "head_size": 64},
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
            "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False, "vocab_size": 151936,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "tie_word_embeddings": True,
            "attention_bias": False, "hidden_act": "silu",
        },
        {"context": 40960, "head_size": 128, "qk_norm": True, "attention_bias": False, "attention_output_bias": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    fields, expected = PUBLISHED[name]
    config = config_from_huggingface(fields)
    assert {field: getattr(config, field) for field in expected} == expected
    assert (config.width, config.layers) == (fields["hidden_size"], fields["num_hidden_layers"])
    written = config_to_huggingface(config)
    assert config_from_huggingface(written) == config


MISTRAL, QWEN = {**LLAMA, "model_type": "mistral"}, {**LLAMA, "model_type": "qwen2", "max_position_embeddings": 9000}
WINDOWED = {**QWEN, "use_sliding_window": True, "max_window_layers": 1}  # its second layer


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({**MISTRAL, "max_position_embeddings": 9000}, 4096),  # transformers' window where config.json names none
        ({**MISTRAL, "max_position_embeddings": 9000, "sliding_window": None}, 9000),
        ({**MISTRAL, "sliding_window": 3}, 3),
        ({**MISTRAL, "sliding_window": 100}, 5),
        (QWEN, 9000),
        ({**QWEN, "sliding_window": 3}, 9000),
        ({**WINDOWED, "sliding_window": 3}, 3),
        (WINDOWED, 4096),
        ({**WINDOWED, "sliding_window": None}, 9000),
        ({**WINDOWED, "max_window_layers": 2}, 9000),
        ({**WINDOWED, "max_window_layers": None}, 9000),  # 28
        ({**WINDOWED, "layer_types": ["full_attention", "full_attention"]}, 9000),
        ({**QWEN, "layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}, 4096),
        ({**WINDOWED, "model_type": "qwen3"}, 4096),
        ({**LLAMA, "sliding_window": 3}, 5),  # Llama has none
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 3}}, 3),
    ],
)
def test_a_window_is_the_longest_context(fields, context):
    assert config_from_huggingface(fields).context == context


def test_a_mistral_is_written_without_a_window():
    """transformers has one by default. (Only where heads do not fill the width: others are written as Llama.)"""
    fields = {**MISTRAL, "max_position_embeddings": 9000, "sliding_window": None, "hidden_size": 9, "head_dim": 2}
    config = config_from_huggingface(fields)
    written = config_to_huggingface(config)
    assert written["model_type"] == "mistral"
    assert config_from_huggingface(written) == config


def test_what_transformers_takes_for_granted():
    assert config_from_huggingface({**LLAMA, "model_type": "qwen3"}).head_size == 128
    assert config_from_huggingface({**LLAMA, "head_dim": None}).head_size == 2
    both = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 3.0}}
    assert config_from_huggingface({**LLAMA, **both}).rope_scaling == {"type": "linear", "factor": 3.0}


def test_where_llama3_began_stands_outside_first():
    """As in transformers, of this number alone."""
    rope = {"rope_parameters": {"rope_type": "llama3", **LLAMA3_SCALING}}
    inside, both = ({**LLAMA, **rope, **more} for more in ({}, {"original_max_position_embeddings": 100}))
    scalings = [config_from_huggingface(fields).rope_scaling for fields in (inside, both)]
    assert [scaling["original_max_position_embeddings"] for scaling in scalings] == [64, 100]
    without = {name: value for name, value in LLAMA3_SCALING.items() if name != "original_max_position_embeddings"}
    scaling = config_from_huggingface({**LLAMA, "rope_scaling": {"rope_type": "llama3", **without}}).rope_scaling
    assert scaling["original_max_position_embeddings"] == LLAMA["max_position_embeddings"]


@pytest.mark.parametrize(
    ("base", "keys", "received"),
    [
        (MISTRAL, {"sliding_window": 0}, "sliding_window must be a whole number > 0; got 0"),
        (MISTRAL, {"sliding_window": "4"}, "got '4'"),
        (WINDOWED, {"max_window_layers": -1}, "max_window_layers must be a whole number >= 0; got -1"),
        (LLAMA, {"is_causal": False}, "is_causal must be True; got False"),
        (LLAMA, {"per_layer_config": {"1": {"rms_norm_eps": 0.5}}}, "layers must be alike; got per_layer_config"),
        (QWEN, {"use_sliding_window": "no"}, "use_sliding_window must be true or false; got 'no'"),
        (QWEN, {"layer_types": ["linear_attention"]}, "layer_types must be full_attention; got 'linear_attention'"),
        (QWEN, {"layer_types": "full_attention"}, "layer_types must be a list; got 'full_attention'"),
        ({}, {}, "got None"),
        ({}, {"model_type": "mamba"}, "gpt2, llama, mistral, qwen2, qwen3; got 'mamba'"),
        ({}, {"model_type": ["gpt2"]}, "got ['gpt2']"),
        (GPT2, {"n_embd": None}, "n_embd must be a whole number > 0; got None"),
        (GPT2, {"n_layer": "2"}, "got '2'"),
        (GPT2, {"n_head": 4}, "(6, 4)"),
        (GPT2, {"activation_function": "quick_gelu"}, "got 'quick_gelu'"),
        (GPT2, {"layer_norm_epsilon": 10**400}, "layer_norm_epsilon"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "got True"),
        (GPT2, {"scale_attn_weights": False}, "got False"),
        (GPT2, {"add_cross_attention": True}, "got True"),
        (GPT2, {"tie_word_embeddings": "yes"}, "got 'yes'"),
        (LLAMA, {"hidden_act": "gelu"}, "got 'gelu'"),
        (LLAMA, {"num_key_value_heads": 3}, "(4, 3)"),
        (LLAMA, {"head_dim": 3}, "got 3"),
        (LLAMA, {"rms_norm_eps": float("nan")}, "got nan"),
        (LLAMA, {"rope_scaling": [2]}, "got [2]"),
        (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "default, linear, llama3, dynamic; got 'yarn'"),
        (LLAMA, {"rope_scaling": {"type": "linear"}}, "factor must be a finite number > 0; got None"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "got 0.5"),
    ],
)
def test_what_is_refused_is_named(base, keys, received):
    with pytest.raises(FormatError) as caught:
        config_from_huggingface({**base, **keys})
    assert received in str(caught.value)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ROPE_KEYS = ("type", "rope_type", "rope_theta", "partial_rotary_factor", *LLAMA3_SCALING)
ROPE = st.dictionaries(st.sampled_from(ROPE_KEYS), JSON | st.sampled_from(["linear", "llama3", 2.0]))


@given(base=st.sampled_from([GPT2, LLAMA]), data=st.data())
def test_no_configuration_breaks_the_reader(base, data):
    keys = (*base, "tie_word_embeddings", "n_inner", "head_dim", "rms_norm_eps", "attention_bias", "mlp_bias")
    config = {**base, **data.draw(st.dictionaries(st.sampled_from(keys), JSON, max_size=2))}
    if data.draw(st.booleans()):
        config[data.draw(st.sampled_from(["rope_scaling", "rope_parameters"]))] = data.draw(ROPE | JSON)
    try:
        assert isinstance(config_from_huggingface(config), ModelConfig)
    except FormatError:
        return


@pytest.mark.parametrize("base", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back(base, tied):
    switches = {"tie_word_embeddings": tied, "attention_bias": True, "mlp_bias": True}
    config = config_from_huggingface({**base, **switches})
    parameters = random_parameters(config)
    tensors = to_huggingface(config, parameters)
    assert ("lm_head.weight" in tensors) is not tied
    back = from_huggingface(config, tensors)
    assert back.keys() == parameters.keys()
    for name, array in parameters.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_gpt2_joins_and_transposes():
    config = config_from_huggingface(GPT2)
    parameters = random_parameters(config)
    attention = "blocks.1.attention"
    joined = to_huggingface(config, parameters)["transformer.h.1.attn.c_attn.weight"]
    assert joined.shape == (6, 18)
    np.testing.assert_array_equal(joined[:, 6:12], parameters[f"{attention}.key.weight"].T)


@pytest.mark.parametrize(
    ("base", "prefix", "buffers"),
    [
        (GPT2, "transformer.", ["h.0.attn.bias", "h.1.attn.masked_bias"]),
        (LLAMA, "model.", ["layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq", "rotary_emb.cos_cached"]),
    ],
    ids=["gpt2", "llama"],
)
def test_files_without_prefix_and_with_buffers(base, prefix, buffers):
    """GPT-2's own file has no prefix, and older files hold masks, frequencies and the tied head."""
    config = config_from_huggingface({**base, "tie_word_embeddings": True})
    parameters = random_parameters(config)
    tensors = {name.removeprefix(prefix): array for name, array in to_huggingface(config, parameters).items()}
    tensors |= dict.fromkeys([*buffers, "lm_head.weight"], np.zeros(3, np.float32))
    assert from_huggingface(config, tensors).keys() == parameters.keys()


def test_half_precision_becomes_float32():
    config = config_from_huggingface(LLAMA)
    tensors = to_huggingface(config, random_parameters(config))
    halves = {name: (array / 1000).astype(np.float16) for name, array in tensors.items()}
    assert {array.dtype for array in from_huggingface(config, halves).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("base", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_wrong_tensors_are_named(base):
    config = config_from_huggingface(base)
    tensors = to_huggingface(config, random_parameters(config))
    name = next(reversed([name for name in tensors if "0." in name]))
    without = {other: array for other, array in tensors.items() if other != name}
    for damaged in (
        without,
        without | {name: tensors[name][:-1]},
        without | {name: tensors[name].astype(np.int32)},
        {**tensors, f"{name}_scale": tensors[name]},
    ):
        with pytest.raises(FormatError, match=name):
            from_huggingface(config, damaged)


def test_a_configuration_of_endless_layers_is_refused_at_once():
    config = config_from_huggingface(GPT2)
    tensors = to_huggingface(config, random_parameters(config))
    with pytest.raises(FormatError, match="layers must be a whole number"):
        from_huggingface(config_from_huggingface({**GPT2, "n_layer": 10**12}), tensors)


@pytest.mark.parametrize(
    ("base", "change", "difference"),
    [
        (GPT2, {"head_bias": True}, "head_bias=False"),
        (GPT2, {"activation": "swiglu"}, "activation=gelu_tanh"),
        (GPT2, {"heads": 2, "kv_heads": 1}, "kv_heads=2"),
        (GPT2, {"head_size": 4}, "head_size=3"),
        (GPT2, {"width": 7}, r"head_size=3\.5"),
        (LLAMA, {"attention_output_bias": True}, "attention_output_bias=False"),
        (LLAMA, {"norm_position": "post"}, "norm_position=pre"),
    ],
)
def test_a_model_unknown_to_hugging_face_is_refused(base, change, difference):
    config = ModelConfig(**{**config_from_huggingface(base).to_dict(), **change})
    with pytest.raises(FormatError, match=difference):
        to_huggingface(config, random_parameters(config))
