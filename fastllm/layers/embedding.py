"""From token ids to rows: token embedding plus positions."""

from __future__ import annotations

import numpy as np

from ..config import ModelConfig
from ..parameters import Parameters
from .backend import Backend
from .batch import Batch
from .dropout import Dropout
from .rotary import sinusoidal_table
from .workspace import Workspace


class Embedding:
    """Token table, and the position table if the model has one (learned, or fixed and sinusoidal)."""

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
    ) -> None:
        self._kernels = backend.kernels
        self.tokens, self.dtokens = parameters["embedding.token.weight"], gradients["embedding.token.weight"]
        self.dpositions: np.ndarray | None = None
        self.positions: np.ndarray | None = None
        if config.positions == "learned":
            self.positions = parameters["embedding.position.weight"]
            self.dpositions = gradients["embedding.position.weight"]
        elif config.positions == "sinusoidal":
            self.positions = sinusoidal_table(config).astype(backend.dtype)
        self.dropout = Dropout(backend, config.dropout, site=0)
        self.out = workspace.rows(config.width)

    def forward(self, batch: Batch) -> np.ndarray:
        """Rows (N, C) for batch.tokens."""
        out = self.out.array
        self._kernels.embedding_forward(out, batch.tokens, self.tokens, False)
        if self.positions is not None:
            self._kernels.embedding_forward(out, batch.positions, self.positions, True)
        self.dropout.forward(out, batch)
        return out

    def backward(self, dout: np.ndarray, batch: Batch) -> None:
        """Add to the tables' gradients; dout (N, C) is used up."""
        dout = self.dropout.backward(dout, dout, batch)
        self._kernels.embedding_backward(self.dtokens, dout, batch.tokens)
        if self.dpositions is not None:
            self._kernels.embedding_backward(self.dpositions, dout, batch.positions)
