"""Models by name from Hugging Face's hub, with the package huggingface_hub (extra `hf`), which keeps them on disk."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import FastllmError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*\.gguf)?")
# What a model needs, and nothing that runs code.
FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
# The weights once more: in Mistral's own layout, and of training's stations.
SUPERFLUOUS = ["consolidated*", "*/*.safetensors", "*/*.json"]


def is_hub_name(name: str) -> bool:
    """Whether it may be "org/model", or "org/model/file.gguf"."""
    return NAME.fullmatch(name) is not None


def download(name: str) -> Path:
    """The folder of a model, or its GGUF file: what is on disk from before, or what the hub gives.

    Raises FastllmError where the package is missing or the hub doesn't give it.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise FastllmError(
            f"there is nothing at {name}, and to look for it on Hugging Face's hub takes huggingface_hub; got none; "
            'check the path, or pip install "fastllm-numba[hf]"'
        ) from None
    org, model, *file = name.split("/", 2)
    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(f"{org}/{model}", file[0]))
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES, ignore_patterns=SUPERFLUOUS))
    except Exception as error:  # its own, those of what it talks with, and of what came in place of an answer
        reason = " ".join(str(error).split())[:300]
        raise FastllmError(
            f"there is no file or folder {name}, and it could not be fetched from Hugging Face's hub; got "
            f"{type(error).__name__}: {reason}; check the spelling, or the connection"
        ) from None
