"""Models by name from the Hugging Face hub, by way of the package huggingface_hub (extra `hf`) and its disk cache."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import FastllmError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*((/[A-Za-z0-9][A-Za-z0-9._-]*)+\.gguf)?")
# What a model needs, and nothing that runs code.
FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
# The weights again: in Mistral's own layout; intermediate checkpoints in folders of their own.
SUPERFLUOUS = ["consolidated*", "*/*.safetensors", "*/*.json"]


def is_hub_name(name: str) -> bool:
    """Whether a name has the form "org/model" or "org/model/file.gguf"; the file may be in folders."""
    return NAME.fullmatch(name) is not None


def download(name: str, needs_weights: bool = True) -> Path:
    """Download a model's folder, or a GGUF file, and return its path on disk.

    needs_weights  whether the folder must hold a model's weights, not only a tokenizer

    huggingface_hub downloads only what its cache lacks, and uses the cache where the hub can't be reached. Raises
    FastllmError where that package is missing, the download fails, or there are no weights.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise FastllmError(
            f"there is nothing at {name}, and looking for it on Hugging Face's hub needs the package huggingface_hub; "
            'got none; check the path, or pip install "fastllm-numba[hf]"'
        ) from None
    org, model, *file = name.split("/", 2)
    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(f"{org}/{model}", file[0]))
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES, ignore_patterns=SUPERFLUOUS))
    except Exception as error:  # huggingface_hub's, the HTTP library's, and parsers' of broken answers
        reason = " ".join(str(error).split())[:300]
        raise FastllmError(
            f"there is no file or folder {name}, and it could not be fetched from Hugging Face's hub; got "
            f"{type(error).__name__}: {reason}; check the spelling, or the connection"
        ) from None
    if needs_weights and not any(folder.glob("*.safetensors")):
        raise FastllmError(
            f"{name} on Hugging Face's hub must hold safetensors; got none; if it has GGUF files, name one: "
            f"{name}/file.gguf"
        )
    return folder
