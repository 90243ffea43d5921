"""What all layers of a model are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import ModelConfig
from ..lora import AdapterParameters
from ..parameters import FileParameters, Parameters
from .backend import Backend
from .workspace import Workspace


@dataclass(frozen=True, slots=True)
class Shared:
    """Parts that layers share.

    parameters  in one buffer that can be written to, or as a file holds them, read-only
    gradients   of the parameters; None where there are none: in inference, or while an adapter is trained instead
    adapter     low-rank additions to linear maps, and their gradients; or None
    """

    backend: Backend
    config: ModelConfig
    parameters: Parameters | FileParameters
    gradients: Parameters | None
    workspace: Workspace
    adapter: AdapterParameters | None = None
    adapter_gradients: AdapterParameters | None = None

    def gradient(self, name: str) -> np.ndarray:
        """Where a bias's or a norm's gradient goes: its place in `gradients`, or memory that nobody reads."""
        if self.gradients is not None:
            return self.gradients.get(name, self.backend.no_row)
        if name not in self.parameters:
            return self.backend.no_row
        return np.zeros(self.parameters[name].size, self.backend.dtype)
