"""Random sizes for the cases of every kernel, by family, for fuzz_kernels.py: `SIZES[kernel](Draw(rng))`."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from fastllm.kernels import attention, block_rows, claim, embedding, jit, kv_cache, packed, tile
from fastllm.kernels.cached_rows import GROUP
from fastllm.kernels.cases import CASES
from fastllm.kernels.llvm import LANES
from fastllm.kernels.matmul import DEPTH, FEW_ROWS, LOW_ROWS, PACKED_DEPTH, PACKING, PACKING_A, SAME_SET
from fastllm.kernels.matmul import ROWS as PANEL_ROWS
from fastllm.kernels.reference.packed import KINDS
from fastllm.kernels.unpacking import PIECE

# At about these numbers (and two and three times as many) kernels take another way.
ROWS = (
    1, tile.ROW_UNIT, LOW_ROWS, tile.TILE_ROWS, block_rows.TOGETHER, PIECE, PACKING_A, PACKING,
    FEW_ROWS, PANEL_ROWS,
)  # fmt: skip
COLUMNS = (
    1, LANES, tile.TILE_COLUMNS, embedding.COLUMNS, packed.CHUNK, PIECE, packed.STRIP_COLUMNS, PACKED_DEPTH,
    DEPTH, SAME_SET, min(block_rows.WIDE, SAME_SET), PANEL_ROWS,
)  # fmt: skip
LENGTHS = (
    1, tile.TILE_ROWS, tile.TILE_COLUMNS, GROUP, kv_cache.BLOCK, attention.QUERIES, attention.KEYS,
    attention.MOST_PIECES * attention.KEYS,
)  # fmt: skip
HEAD_SIZES = (1, 2, LANES, tile.TILE_COLUMNS, 64, 128)
CHUNKS = (1, 2, 3, 8, jit.MAX_CHUNKS - 1, jit.MAX_CHUNKS, jit.MAX_CHUNKS + 1, 2 * jit.MAX_CHUNKS)
FLAT = (1, LANES, claim.MOST, jit.ELEMENTS_PER_CHUNK, jit.MAX_CHUNKS * claim.MOST)
RANKS = (1, 8, *ROWS[:-1])
VOCABULARY = (1, jit.ELEMENTS_PER_CHUNK, 2 * jit.ELEMENTS_PER_CHUNK, 50257)

Size = dict[str, Any]


class Draw:
    """Random sizes for the kernels: a method for each family."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def flag(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def one_of(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def near(self, borders: tuple[int, ...], most: int) -> int:
        """A number from 1 to `most`: half of the time one near a border, or near two or three times that."""
        how = self.rng.random()
        if how < 0.5:
            value = self.one_of(*borders) * self.one_of(1, 1, 2, 3) + int(self.rng.integers(-2, 3))
        elif how < 0.8:
            value = int(math.exp(self.rng.uniform(0, math.log(most + 1))))
        else:
            value = int(self.rng.integers(0, min(most, 70) + 1))
        return max(1, min(most, value))

    def work(self) -> float:
        return 3e8 if self.flag(0.8) else 3e9

    def product(self) -> tuple[int, int, int]:
        most = self.work()
        while True:
            m, n, k = self.near(ROWS, 2000), self.near(COLUMNS, 5000), self.near(COLUMNS, 5000)
            if m * n * k <= most:
                return m, n, k

    def matmul(self) -> Size:
        m, n, k = self.product()
        m, k = self.one_of((m, k), (k, m))
        flags = {"transpose_a": self.flag(), "transpose_b": self.flag(), "accumulate": self.flag()}
        return {"m": m, "n": n, "k": k} | flags

    def linear(self) -> Size:
        rows, inputs, outputs = self.product()
        return {"rows": rows, "inputs": inputs, "outputs": outputs, "bias": self.flag(), "residual": self.flag()}

    def linear_backward(self) -> Size:
        return self.linear() | {"accumulate": self.flag()}

    def lora(self) -> Size:
        rows, inputs, outputs = self.product()
        first = self.one_of(0, self.near(COLUMNS, 3000))
        width = first + outputs + self.one_of(0, self.near(COLUMNS, 100))
        rank = self.near(RANKS, 256)
        return {"rows": rows, "inputs": inputs, "outputs": outputs, "rank": rank, "first": first, "width": width}

    def packed(self, rows: int = 2000) -> Size:
        most = self.work() / 3
        while True:
            pool = self.one_of(tuple(KINDS), tuple(kind for kind in KINDS if KINDS[kind][0] == 1))
            kinds = tuple(self.one_of(*pool) for _ in range(self.one_of(1, 2, 3)))
            unit = max(KINDS[kind][0] for kind in kinds)
            columns = -(-self.near(COLUMNS, 5000) // unit) * unit
            outputs = tuple(self.near(COLUMNS, 5000) for _ in kinds)
            size = {"rows": self.near(ROWS, rows), "columns": columns, "kinds": kinds, "outputs": outputs}
            if size["rows"] * columns * sum(outputs) <= most and columns * sum(outputs) < 2e7:
                return size | {"bias": self.flag(), "residual": self.flag()}

    def packed_rows(self) -> Size:
        return self.packed(40)

    def packed_embedding(self) -> Size:
        kind = self.one_of(*KINDS)
        columns = -(-self.near(COLUMNS, 5000) // KINDS[kind][0]) * KINDS[kind][0]
        return {"rows": self.near(ROWS, min(2000, 2_000_000 // columns)), "columns": columns, "kind": kind}

    def heads(self) -> Size:
        kv_heads, group = self.one_of((1, 1), (1, 2), (1, 4), (1, 9), (2, 1), (2, 7), (3, 3), (4, 2), (5, 1), (12, 1))
        return {"heads": kv_heads * group, "kv_heads": kv_heads, "head_size": self.near(HEAD_SIZES, 256)}

    def attention(self) -> Size:
        size, count = self.heads(), self.one_of(1, 1, 2, 3, self.near(ROWS, 40))
        most = min(2e7, self.work() * 0.7 / size["head_size"]) / size["heads"]
        lengths = [self.near(LENGTHS, 4096 if count < 4 else 600) for _ in range(count)]
        while sum(lengths) > 6000 or sum(n * n for n in lengths) > most:
            lengths[int(np.argmax(lengths))] = self.near(LENGTHS, max(lengths) - 1)
        return {"lengths": tuple(lengths)} | size

    def paged(self, *pages: int) -> Size:
        while True:
            size, page = self.attention(), GROUP * self.one_of(kv_cache.BLOCK // GROUP, *pages)
            tokens = sum(-(-n // page) * page for n in size["lengths"])
            if tokens * size["kv_heads"] * size["head_size"] <= 1e7:
                return size | {"page": page, "is_half": self.flag()}

    def decode(self) -> Size:
        return self.paged(1, 2, 3, 8, 17, 25, 64)

    def prefill(self) -> Size:
        """Pages of at most KEYS tokens, or of a multiple of that."""
        whole = attention.KEYS // GROUP
        size = self.paged(*range(1, whole + 1), 2 * whole, 4 * whole)
        return size | {"new": tuple(self.one_of(n, self.near(LENGTHS, n)) for n in size["lengths"])}

    def head_norm(self) -> Size:
        size = self.heads()
        return {"rows": self.height((size["heads"] + 2 * size["kv_heads"]) * size["head_size"])} | size

    def rope(self) -> Size:
        size = self.head_norm()
        return size | {"head_size": size["head_size"] // 2 * 2 or 2, "interleaved": self.flag()}

    def height(self, width: int, most: float = 3e6) -> int:
        """How many rows of this width: often about as many as make a whole number of chunks."""
        limit = max(1, min(3000, int(most // width)))
        chunks = jit.ELEMENTS_PER_CHUNK * self.one_of(*CHUNKS) // width + int(self.rng.integers(-1, 3))
        return max(1, min(limit, chunks)) if self.flag() else self.near(ROWS, limit)

    def rows(self) -> Size:
        width = self.near(COLUMNS, 5000)
        return {"rows": self.height(width), "width": width}

    def norm(self) -> Size:
        return self.rows() | {"bias": self.flag()}

    def rms_norm_backward(self) -> Size:
        return self.rows() | {"residual": self.flag()}

    def norm_backward(self) -> Size:
        return self.norm() | {"residual": self.flag()}

    def logits(self) -> Size:
        vocabulary = self.near(VOCABULARY, 50257)
        return {"rows": self.height(vocabulary), "vocabulary": vocabulary}

    def embedding_backward(self) -> Size:
        size = self.rows()
        return size | {"vocabulary": self.near(VOCABULARY, min(50257, 6_000_000 // size["width"]))}

    def embedding(self) -> Size:
        return self.embedding_backward() | {"accumulate": self.flag()}

    def picked(self) -> Size:
        size = self.rows()
        return size | {"picked": self.one_of(0, size["rows"], int(self.rng.integers(0, size["rows"] + 1)))}

    def flat(self) -> Size:
        count = jit.ELEMENTS_PER_CHUNK * self.one_of(*CHUNKS) + int(self.rng.integers(-40, 41))
        return {"parameters": self.one_of(count, self.near(FLAT, 3_000_000))}

    def dropout(self) -> Size:
        place = {"row": int(self.rng.integers(10**6)), "offset": int(self.rng.integers(2**45))}
        return self.rows() | {"probability": self.one_of(0.0, 0.1, 0.5, 0.9)} | place


FAMILIES: dict[Callable[[Draw], Size], str] = {
    Draw.matmul: "matmul",
    Draw.linear: "linear_forward",
    Draw.linear_backward: "linear_backward",
    Draw.lora: "lora_forward lora_backward",
    Draw.packed: "packed_forward packed_backward",
    Draw.packed_rows: "packed_rows_forward",
    Draw.packed_embedding: "packed_embedding_forward",
    Draw.attention: "attention_forward attention_backward",
    Draw.decode: "attention_decode kv_cache_write",
    Draw.prefill: "attention_prefill",
    Draw.head_norm: "head_norm_forward head_norm_backward",
    Draw.rope: "rope_forward rope_backward",
    Draw.norm: "layernorm_forward",
    Draw.norm_backward: "layernorm_backward",
    Draw.rms_norm_backward: "rms_norm_backward",
    Draw.logits: "cross_entropy_forward cross_entropy_forward_backward",
    Draw.embedding: "embedding_forward",
    Draw.embedding_backward: "embedding_backward",
    Draw.picked: "gather_rows scatter_rows",
    Draw.flat: "adamw sgd lion scale zero squared_norm",
    Draw.dropout: "dropout_forward dropout_backward",
    Draw.rows: "rms_norm_forward softmax_forward softmax_backward add swiglu_forward swiglu_backward relu_forward "
    "relu_backward gelu_forward gelu_backward gelu_tanh_forward gelu_tanh_backward silu_forward silu_backward",
}
SIZES = {name: family for family, names in FAMILIES.items() for name in names.split()}
assert SIZES.keys() == CASES.keys(), f"sizes are missing or of no kernel: {sorted(SIZES.keys() ^ CASES.keys())}"
