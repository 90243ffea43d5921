"""PEFT's adapter_config.json (github.com/huggingface/peft): the scale of each low-rank addition.

alpha_pattern gives some modules an alpha of their own. Which modules have an addition, and its rank, is read from the
tensors, not from target_modules, exclude_modules, layers_to_transform and rank_pattern.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from ..lora import Addition
from ..small_files import brief

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(r"(\^?)((?:\w|-|\\?\.)+)\$?")  # a module's name as a regular expression

# Features that fastllm lacks: these keys must be absent, null, false or empty.
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
# Initialisations that leave the base model's weights as they are; others (PiSSA, OLoRA, LoftQ, ...) change them.
INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")


class Rules:
    """The content of adapter_config.json, checked. Raises FormatError."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
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
        given = fields.get("init_lora_weights")
        if not any(given is known or (given == known and isinstance(known, str)) for known in INITIALISATIONS):
            raise FormatError(
                f"init_lora_weights must leave the weights of the base model as they are; got {brief(given)}; have "
                "PEFT convert the adapter (path_initial_model_for_weight_conversion)"
            )
        self._alpha = _positive("lora_alpha", fields.get("lora_alpha", 8))
        alphas = fields.get("alpha_pattern") or {}
        if not isinstance(alphas, dict):
            raise FormatError(f"alpha_pattern must map names of modules to numbers; got {brief(alphas)}; fix {CONFIG}")
        self._alphas = {_suffix(key): _positive("alpha_pattern", value) for key, value in alphas.items()}
        self._is_root = fields.get("use_rslora") or False
        if not isinstance(self._is_root, bool):
            raise FormatError(f"use_rslora must be true or false; got {brief(self._is_root)}; fix {CONFIG}")

    def addition(self, module: str, rank: int) -> Addition:
        """The rank and scale of a module's addition."""
        alpha = next((alpha for end, alpha in self._alphas.items() if f"^.{module}".endswith(end)), self._alpha)
        return Addition(rank, alpha / (math.sqrt(rank) if self._is_root else rank))


def _suffix(key: str) -> str:
    """What "^." + the name of a module must end with for a key of alpha_pattern to match; with ^, its whole name.

    Keys are regular expressions for the end of a name. Tools write plain names; matching others could take very long.
    """
    name = NAME.fullmatch(key)
    if name is None:
        raise FormatError(
            f"keys of alpha_pattern must be names of modules, or ends of names; got {brief(key)}; merge the adapter "
            "with PEFT and open the model"
        )
    return f"{name[1]}.{name[2]}".replace("\\", "")


def _positive(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise FormatError(f"{key} must be a number > 0; got {brief(value)}; fix {CONFIG}")
    return float(value)
