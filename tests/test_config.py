"""ModelConfig and presets: what is filled in, what is refused, and the way to JSON and back."""

import dataclasses
import json
import math

import numpy as np
import pytest

import fastllm
from fastllm.config import PRESETS, ModelConfig
from fastllm.errors import ConfigError, FormatError
from fastllm.parameters import Parameters

SIZES = {"vocab_size": 50, "width": 12, "hidden": 20, "layers": 2, "heads": 3, "context": 9}
LLAMA3 = {
    "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def test_what_is_left_out_is_filled_in():
    config = ModelConfig(**SIZES)
    assert (config.kv_heads, config.head_size, config.attention_output_bias) == (3, 4, True)
    assert ModelConfig(**SIZES, attention_bias=False).attention_output_bias is False
    assert ModelConfig(**SIZES, attention_output=False).attention_output_bias is False
    assert ModelConfig(**SIZES, kv_heads=1, head_size=6).qkv_width == (3 + 2) * 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *[({name: 0}, f"{name} must be a whole number from 1 to .*; got 0") for name in SIZES],
        ({"context": 10**15}, "context must be a whole number from 1 to"),
        ({"norm_eps": 10**400}, "norm_eps must be a finite number > 0"),
        *[({name: True}, f"{name} must be a whole number from 1 to .*; got True") for name in SIZES],
        *[
            ({name: 1.5}, f"{name} must be a whole number from 1 to .*; got 1.5")
            for name in ("width", "kv_heads", "head_size")
        ],
        *[({name: "yes"}, f"{name} must be true or false; got 'yes'") for name in ("final_norm", "attention_bias")],
        ({"attention_output_bias": "yes"}, "attention_output_bias must be true or false"),
        ({"norm": "batchnorm"}, "norm must be one of layernorm, rms_norm; got 'batchnorm'"),
        ({"norm": None}, "norm must be one of"),
        ({"norm_position": "middle"}, "norm_position must be one of"),
        ({"activation": ["relu"]}, "activation must be one of"),
        ({"positions": "alibi"}, "positions must be one of"),
        ({"positions": "sinusoidal", "context": 1 << 24}, "context \\* width must be at most 134217728 for sinusoidal"),
        ({"norm_eps": 0}, "norm_eps must be a finite number > 0"),
        ({"norm_eps": np.zeros((2, 2))}, "norm_eps must be a finite number > 0"),  # which repr writes in two lines
        ({"rope_theta": math.inf}, "rope_theta must be a finite number > 0"),
        ({"heads": 5}, "width must be a multiple of heads"),
        ({"kv_heads": 2}, "heads must be a multiple of kv_heads"),
        ({"head_size": 5, "attention_output": False}, "heads \\* head_size must equal width"),
        ({"attention_output": False, "attention_output_bias": True}, "attention_output_bias needs attention_output"),
        ({"head_size": 5, "positions": "rope"}, "head_size must be even"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1"),
        ({"initial_std": 0}, "initial_std must be a finite number > 0, as a float32 too, or None"),
        ({"rope_scaling": {}}, "rope_scaling's type must be one of linear, llama3, factors; got None"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_scaling's type must be one of"),
        ({"rope_scaling": 4.0}, "rope_scaling must be a table"),
        ({"rope_scaling": "linear"}, "rope_scaling must be a table"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling's type must be one of linear, llama3, factors; got 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling needs factor, a finite number > 0; got 0"),
        ({"rope_scaling": {"type": "linear", "facter": 2.0}}, "no key 'facter'; did you mean 'factor'"),
        ({"rope_scaling": {"type": "factors", "factors": [1.0, 2.0, 3.0]}}, "a list of 4 / 2 finite numbers > 0"),
        ({"rope_scaling": {"type": "factors", "factors": [1.0, 0.0]}}, "a list of 4 / 2 finite numbers > 0"),
        ({"rope_scaling": {"type": "factors", "factors": 2.0}}, "a list of 4 / 2 finite numbers > 0"),
        ({"rope_scaling": {**LLAMA3, "factor": math.nan}}, "rope_scaling needs factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must be above low_freq_factor"),
    ],
)
def test_broken_rules(fields, message):
    with pytest.raises(ConfigError, match=message) as raised:
        ModelConfig(**{**SIZES, **fields})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "fix"), [("widht", "did you mean 'width'"), ("head_bais", "did you mean 'head_bias'"), ("q", "known keys:")]
)
def test_unknown_keys_name_the_closest(key, fix):
    with pytest.raises(ConfigError, match=f"no key '{key}'; {fix}"):
        ModelConfig.from_dict({**SIZES, key: 1})


@pytest.mark.parametrize("name", SIZES)
def test_missing_keys(name):
    fields = {key: value for key, value in SIZES.items() if key != name}
    with pytest.raises(ConfigError, match=f"needs {name}"):
        ModelConfig.from_dict(fields)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(**SIZES),
        ModelConfig(**SIZES, positions="rope", rope_scaling=LLAMA3, initial_std=None, kv_heads=1),
        *[fastllm.preset(name, vocab_size=50) for name in PRESETS],
    ],
)
def test_to_json_and_back(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_can_not_be_changed():
    with pytest.raises(AttributeError):
        ModelConfig(**SIZES).width = 7


def test_presets():
    block = 7_087_872
    assert Parameters(fastllm.preset("gpt2", layers=1)).flat.size == 124_439_808 - 11 * block
    rustgpt = fastllm.preset("rustgpt", vocab_size=533)
    assert (rustgpt.norm_position, rustgpt.activation, rustgpt.context) == ("post", "relu", 80)
    assert not (rustgpt.final_norm or rustgpt.attention_output or rustgpt.tied_head)
    assert fastllm.preset("nano", vocab_size=9, layers=7).layers == 7


def test_wrong_presets():
    with pytest.raises(ConfigError, match="no preset 'gtp2'; did you mean 'gpt2'"):
        fastllm.preset("gtp2")
    with pytest.raises(ConfigError, match="no key 'layer'; did you mean 'layers'"):
        fastllm.preset("gpt2", layer=3)
    with pytest.raises(ConfigError, match="needs vocab_size"):
        fastllm.preset("nano")


def test_numbers_of_numpy_become_pythons():
    config = fastllm.preset(
        "nano", vocab_size=np.int64(9), kv_heads=np.int32(2), dropout=np.float32(0.5), initial_std=np.float64(1)
    )
    assert config == fastllm.preset("nano", vocab_size=9, kv_heads=2, dropout=0.5, initial_std=1.0)
    assert {type(value) for value in config.to_dict().values()} <= {int, float, bool, str, type(None)}
    assert fastllm.LoRAConfig(rank=np.int64(2), alpha=np.float32(4)) == fastllm.LoRAConfig(rank=2, alpha=4.0)


@pytest.mark.parametrize("option", [{"norm_eps": 1e-50}, {"initial_std": 1e39}])
def test_numbers_that_no_float32_holds(option):
    with pytest.raises(ConfigError, match="as a float32 too"):
        fastllm.preset("nano", vocab_size=9, **option)


def test_a_configuration_stays_as_it_is():
    scaling = {"type": "factors", "factors": [1.0, 2.0]}
    config = ModelConfig(**SIZES, positions="rope", rope_scaling=scaling)
    for given in (scaling, config.to_dict()["rope_scaling"]):
        given["factors"][0] = given["type"] = -1
    assert config.rope_scaling == {"type": "factors", "factors": [1.0, 2.0]}
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.filterwarnings("error")
def test_numbers_of_numpy_in_rope():
    config = fastllm.preset(
        "nano", vocab_size=9, rope_theta=np.float32(1e4), rope_scaling={"type": "linear", "factor": np.float32(2)}
    )
    assert json.dumps(config.to_dict())
    assert (config.rope_theta, config.rope_scaling["factor"]) == (1e4, 2.0)


def test_messages_are_short_whatever_was_received(tmp_path):
    nested = "x" * 100
    for _ in range(6):
        nested = [nested] * 6
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": nested}))
    with pytest.raises(FormatError, match="must have weights of float32") as of_a_file:
        fastllm.load(tmp_path)
    with pytest.raises(ConfigError, match="norm must be one of") as of_a_field:
        ModelConfig(**SIZES, norm=nested)
    with pytest.raises(ConfigError, match="has no key") as of_a_key:
        ModelConfig.from_dict({**SIZES, "x" * 100_000: 1})
    for raised in (of_a_file, of_a_field, of_a_key):
        assert len(str(raised.value)) < 1000
