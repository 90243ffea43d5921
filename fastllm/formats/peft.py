"""PEFT's adapter_config.json (github.com/huggingface/peft): which maps of a model have a low-rank addition, and how
much it counts.

Rank and alpha of some modules are in rank_pattern and alpha_pattern, by regular expressions; target_modules,
exclude_modules, layers_to_transform and layers_pattern say where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastllm.errors import FormatError
from fastllm.formats.patterns import Matcher
from fastllm.lora import Addition
from fastllm.small_files import brief

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_RANK = (1 << 16) - 1
MOST_PATTERNS = 10_000

# What changes the sum that is computed, or the base's weights before; a file must have nothing at these keys.
LACKING = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside low-rank ones",
    "lora_bias": "biases of lora_B",
    "trainable_token_indices": "rows of embeddings",
    "target_parameters": "parameters that are no linear map",
    "layer_replication": "layers used several times",
    "alora_invocation_tokens": "activation by tokens",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Ways to begin that leave the base's weights as they are; others (PiSSA, OLoRA, LoftQ, ...) change them.
BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


class Rules:
    """What adapter_config.json says, checked."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._matcher = Matcher()
        kind = fields.get("peft_type")
        if kind != "LORA":
            raise FormatError(f'peft_type must be "LORA"; got {brief(kind)}; use an adapter of that kind')
        for key, meaning in LACKING.items():
            if fields.get(key):
                raise FormatError(f"{key} must not be given: fastllm has no {meaning}; got {brief(fields[key])}; "
                                  "merge the adapter with PEFT and open the model")  # fmt: skip
        if fields.get("bias", "none") != "none":
            raise FormatError(
                f'bias must be "none"; got {brief(fields["bias"])}; merge the adapter with PEFT and open the model'
            )
        beginning = fields.get("init_lora_weights")
        if not any(beginning is known or (beginning == known and isinstance(known, str)) for known in BEGINNINGS):
            raise FormatError(
                f"init_lora_weights must be a way to begin that leaves the base as it is; got {brief(beginning)}; "
                "have PEFT convert it (path_initial_model_for_weight_conversion)"
            )
        self._rank = _rank("r", fields.get("r", 8))
        self._alpha = _positive("lora_alpha", fields.get("lora_alpha", 8))
        self._ranks = {key: _rank("rank_pattern", rank) for key, rank in _patterns(fields, "rank_pattern")}
        self._alphas = {key: _positive("alpha_pattern", value) for key, value in _patterns(fields, "alpha_pattern")}
        self._is_root = _flag(fields, "use_rslora")
        _flag(fields, "fan_in_fan_out")  # how the base keeps its weight; A and B don't depend on it
        self._targets = _names(fields, "target_modules")
        self._excluded = _names(fields, "exclude_modules")
        self._layers = _numbers(fields, "layers_to_transform")
        names = _names(fields, "layers_pattern")
        self._layer_names = frozenset((names,)) if isinstance(names, str) else names

    def addition(self, module: str, rank: int) -> Addition:
        """How a module's addition of a rank counts. Raises FormatError where the rules leave it out."""
        if not self._is_target(module):
            raise FormatError(
                f"tensors must be of target_modules; got some of {brief(module)}, which they leave out; mend {CONFIG}"
            )
        expected = self._of(self._ranks, module, self._rank)
        if rank != expected:
            raise FormatError(f"{module} must be of rank {expected}, by {CONFIG}; got {rank}; use another adapter")
        alpha = self._of(self._alphas, module, self._alpha)
        return Addition(rank, alpha / (math.sqrt(rank) if self._is_root else rank))

    def _of(self, patterns: Mapping[str, Any], module: str, default: Any) -> Any:
        for key, value in patterns.items():
            if self._matcher.endmatch(key, module):
                return value
        return default

    def _is_target(self, module: str) -> bool:
        if self._excluded and self._is_among(self._excluded, module):
            return False
        if isinstance(self._targets, str):
            return self._targets.lower() == "all-linear" or self._matcher.fullmatch(self._targets, module)
        if not self._targets or not self._is_among(self._targets, module):
            return False
        if not self._layers:
            return True
        name, number = _layer(module)
        is_named = not self._layer_names or any(self._matcher.endmatch(key, name) for key in self._layer_names)
        return is_named and number in self._layers

    def _is_among(self, names: str | frozenset[str], module: str) -> bool:
        if isinstance(names, str):
            return self._matcher.fullmatch(names, module)
        parts = module.split(".")
        return any(".".join(parts[at:]) in names for at in range(len(parts)))


def _layer(module: str) -> tuple[str, int]:
    """What stands before a module's number, and the number: model.layers, 3 of model.layers.3.mlp.up_proj."""
    parts = module.split(".")
    at = next(at for at, part in enumerate(parts) if part.isdecimal())
    return ".".join(parts[:at]), int(parts[at])


def _rank(key: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= MOST_RANK:
        raise FormatError(f"{key} must be a whole number from 1 to {MOST_RANK}; got {brief(value)}; mend {CONFIG}")
    return value


def _positive(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise FormatError(f"{key} must be a number > 0; got {brief(value)}; mend {CONFIG}")
    return float(value)


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key) or False
    if not isinstance(value, bool):
        raise FormatError(f"{key} must be true or false; got {brief(value)}; mend {CONFIG}")
    return value


def _numbers(fields: Mapping[str, Any], key: str) -> frozenset[int]:
    value = fields.get(key)
    given = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in given):
        raise FormatError(f"{key} must be whole numbers; got {brief(value)}; mend {CONFIG}")
    return frozenset(given)


def _patterns(fields: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    value = fields.get(key) or {}
    if not isinstance(value, dict) or len(value) > MOST_PATTERNS:
        raise FormatError(f"{key} must map at most {MOST_PATTERNS} patterns; got {brief(value)}; mend {CONFIG}")
    return [*value.items()]


def _names(fields: Mapping[str, Any], key: str) -> str | frozenset[str]:
    """Names, or one regular expression."""
    value = fields.get(key) or []
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise FormatError(f"{key} must be names in a list, or a pattern; got {brief(value)}; mend {CONFIG}")
    return frozenset(value)
