"""Other projects' files of models, read and written."""

from __future__ import annotations

import os
from pathlib import Path

from fastllm.errors import FormatError
from fastllm.formats.huggingface_folder import CONFIG, open_huggingface
from fastllm.formats.opened import OpenedModel

__all__ = ["OpenedModel", "open_model"]


def open_model(path: str | os.PathLike[str]) -> OpenedModel:
    """Open a model of another project: a folder of Hugging Face's."""
    path = Path(path)
    if path.is_dir() and (path / CONFIG).is_file():
        return open_huggingface(path)
    raise FormatError(f"{path} must be a model's folder")
