"""Packages that only some models need."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import FastllmError


def require(package: str, purpose: str) -> Any:
    """The imported package; FastllmError where it is missing. purpose: what needs it, to begin a sentence with."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FastllmError(
            f'{purpose} needs the package {package}; got "{error}"; pip install "fastllm-numba[hf]"'
        ) from None
