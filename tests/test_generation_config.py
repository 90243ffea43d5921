"""GenerationConfig: what is refused, and what comes before what."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from fastllm.errors import ConfigError
from fastllm.generation import GenerationConfig, GenerationOptions


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"seed": -1},
        {"stop": ""},
        {"stop": ("a", "")},
        {"beams": 0},
        {"beams": 2, "temperature": 0.5},
        {"beams": 2, "stop": "."},
        {"length_penalty": float("nan")},
        {"length_penalty": 11},
        {"end_ids": (3, -1)},
        {"n": 0},
        {"n": 3, "beams": 2},
        {"logprobs": -1},
        {"beams": 2, "logprobs": 0},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1 << 31: 0.0}},
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": {1: float("nan")}},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"min_p": -0.1},
        {"min_p": float("nan")},
        {"typical_p": 0.0},
        {"typical_p": 1.5},
        {"early_stopping": "always"},
        {"speculate": -1},
        {"speculate": 32},
        {"speculate_ngram": 0},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_an_error_of_one_line(option):
    with pytest.raises(ValueError, match=rf"{next(iter(option))}.*; got .+; .+") as caught:
        GenerationConfig(**option)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 1.5},
        {"temperature": "hot"},
        {"top_k": True},
        {"beams": None},
        {"stop": (1,)},
        {"n": None},
        {"n": 2.0},
        {"end_ids": 3},
        {"end_ids": "ab"},
        {"logprobs": True},
        {"logit_bias": [(1, 2.0)]},
        {"logit_bias": {"a": 2.0}},
        {"logit_bias": {1: None}},
        {"min_p": "0.1"},
        {"typical_p": None},
        {"repetition_penalty": None},
        {"speculate": True},
        {"speculate_ngram": 2.5},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_an_error_of_one_line(option):
    with pytest.raises(TypeError, match=rf"{next(iter(option))} must be .*; got .+; .+"):
        GenerationConfig(**option)


def test_options_go_before_the_config():
    config = GenerationConfig.of(GenerationConfig(temperature=0.5, top_k=3), {"top_k": 5})
    assert (config.temperature, config.top_k) == (0.5, 5)
    assert GenerationConfig.of(None, {}) == GenerationConfig()
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 4


def test_defaults_of_the_model_stand_behind_what_was_given():
    own = {"temperature": 0.6, "top_p": 0.9, "end_ids": [2, 7]}
    config = GenerationConfig.of(GenerationConfig(temperature=0.0, top_k=3), {"top_k": 5}, own)
    assert (config.temperature, config.top_k, config.top_p, config.end_ids) == (0.0, 5, 0.9, (2, 7))
    assert GenerationConfig.of(None, {}, own).given == {**own, "end_ids": (2, 7)}
    assert GenerationConfig.of(GenerationConfig(), {}, own).temperature == 0.6
    twice = GenerationConfig.of(GenerationConfig.of(GenerationConfig(top_p=1.0), {}), {}, own)
    assert (twice.temperature, twice.top_p) == (0.6, 1.0)
    with pytest.raises(ConfigError, match=r"got 'top_q'; did you mean 'top_"):
        GenerationConfig.of(None, {}, {"top_q": 0.9})


def test_a_default_that_contradicts_what_was_given_gives_way():
    assert GenerationConfig.of(None, {"beams": 3}, {"temperature": 0.6, "logprobs": 1}).temperature == 0
    assert GenerationConfig.of(GenerationConfig(temperature=0.5), {}, {"beams": 4}).beams == 1
    assert GenerationConfig.of(None, {"stop": "."}, {"beams": 4}).beams == 1
    assert GenerationConfig.of(None, {"top_k": 3}, {"beams": 4}).beams == 4
    with pytest.raises(ValueError, match="need temperature=0"):
        GenerationConfig.of(GenerationConfig(beams=3), {"temperature": 0.5})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copy_knows_what_was_given(copied):
    config = GenerationConfig(top_k=3, logit_bias={1: 0.5})
    assert copied(config) == config
    assert copied(config).given == {"top_k": 3, "logit_bias": {1: 0.5}}
    assert hash(copied(config)) == hash(config)


def test_the_mapping_that_was_given_may_change_afterwards():
    bias = {1: 0.5}
    config = GenerationConfig(logit_bias=bias)
    bias[1] = float("nan")
    assert config.logit_bias == {1: 0.5}


def test_numbers_of_numpys_and_nothing():
    config = GenerationConfig(temperature=np.float32(0.5), top_p=np.float16(0.5), stop=None, logit_bias=None)
    assert (config.temperature, config.top_p, config.stop, config.logit_bias) == (0.5, 0.5, (), {})
    assert type(config.temperature) is float
    assert type(GenerationConfig(max_tokens=np.int64(3)).max_tokens) is int
    with pytest.raises(ValueError, match="temperature must be finite"):
        GenerationConfig(temperature=10**400)


def test_options_for_editors_are_the_fields():
    fields = {field.name: field.type for field in dataclasses.fields(GenerationConfig)}
    options = {name: hint.__forward_arg__ for name, hint in GenerationOptions.__annotations__.items()}
    assert options == fields
    assert GenerationOptions.__required_keys__ == frozenset()
