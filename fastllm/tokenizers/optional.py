"""Packages that only some models need."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import FastllmError


def require(package: str, purpose: str) -> Any:
    """Import a package. Raises FastllmError where it is missing. purpose: what needs it, to begin the message with."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FastllmError(
            f'{purpose} needs the package {package}; got "{error}"; pip install "fastllm-numba[hf]"'
        ) from None
