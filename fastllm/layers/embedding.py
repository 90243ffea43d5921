"""From token ids to rows: token embedding plus positions."""

from __future__ import annotations

import numpy as np

from ..parameters import Parameters
from .batch import Batch
from .dropout import Dropout
from .linear import read_only
from .rotary import sinusoidal_table
from .shared import Shared


class Embedding:
    """Token table, and the position table if the model has one (learned, or fixed and sinusoidal)."""

    def __init__(self, shared: Shared) -> None:
        backend, config, parameters = shared.backend, shared.config, shared.parameters
        self._backend = backend
        name = "embedding.token.weight"
        self.tokens: np.ndarray | None = None
        if isinstance(parameters, Parameters):
            self.tokens = parameters[name]
        else:
            table = parameters.packed(name)
            self._packed = read_only(table.data), table.kind.number
        self.dtokens: np.ndarray | None = None
        self.dpositions: np.ndarray | None = None
        self.positions: np.ndarray | None = None
        if config.positions == "learned":
            self.positions = parameters.operand("embedding.position.weight")
        elif config.positions == "sinusoidal":
            self.positions = sinusoidal_table(config, backend.dtype)
        if shared.gradients is not None:
            self.dtokens = shared.gradients[name]
            if config.positions == "learned":
                self.dpositions = shared.gradients["embedding.position.weight"]
        self.dropout = Dropout(backend, config.dropout, site=0)
        self.out = shared.workspace.rows("stream", config.width)

    def forward(self, batch: Batch) -> np.ndarray:
        """Rows (N, C) for batch.tokens."""
        k, out = self._backend.kernels, self.out.array
        if self.tokens is None:
            k.packed_embedding_forward(out, batch.tokens, *self._packed)
        else:
            k.embedding_forward(out, batch.tokens, self.tokens, False)
        if self.positions is not None:
            k.embedding_forward(out, batch.positions, self.positions, True)
        self.dropout.forward(out, out, batch)
        return out

    def backward(self, dout: np.ndarray, batch: Batch) -> None:
        """Add to the tables' gradients; dout (N, C) is used up."""
        k, dout = self._backend.kernels, self.dropout.backward(dout, dout, batch)
        if self.dtokens is not None:
            k.embedding_backward(self.dtokens, dout, batch.tokens)
        if self.dpositions is not None:
            k.embedding_backward(self.dpositions, dout, batch.positions)
