"""Compiled kernels: the arithmetic of training and decoding, forward and backward.

The contract, the same for all of them:

- Arguments: first arrays that are written, then arrays that are read, then scalars. Nothing is returned, except by
  reductions that return a scalar.
- Arrays are C-contiguous, have the shapes in the docstring, and are float32 unless it says otherwise; indices and
  counts (ids, targets, positions, starts, lengths, pages ...) are int32. An empty array stands for an absent optional
  one. Nothing is checked here: layers do that.
- Gradients of activations are overwritten (lora_backward adds to dx). Gradients of parameters are added to; those of a
  matrix and its bias are overwritten where `accumulate` is false, which saves setting them to zero.
- Compiled code allocates nothing. Scratch is the last argument: `scratch` from `matmul_scratch`, `packed_scratch`,
  `attention_scratch` or `decode_scratch`, or `partials`, with a row for each of MAX_CHUNKS chunks. attention_backward
  also has `dq_pieces` before it, with a row for each token.
- The bits of a result do not depend on the number of threads.
- Each kernel has a twin of the same name and arguments in `reference/`, in plain NumPy.

N rows (packed tokens), S sequences, C width, F hidden, V vocabulary, H heads, K key/value heads, D head size, I inputs
and O outputs of a linear map, P parameters; other letters where they are used.

Three things are called packed: the tokens of sequences, one after another without padding; operands of a product, as
panels for its tile (matmul.py); and weights in a file's format (packed.py).

To begin, read a file and its twin, such as layernorm.py. `@kernel` and `@linked` are explained in jit.py. The hardest
files are those that write LLVM code by hand: tile.py, row_group.py, cached_rows.py, and blocks.py, unpacking.py,
rounded.py and block_rows.py for weights in blocks. simd.py and llvm.py contain their building blocks.
"""

from .activation import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    relu_backward,
    relu_forward,
    silu_backward,
    silu_forward,
)
from .adam import adamw
from .attention import attention_backward, attention_forward, attention_pieces, attention_scratch
from .cross_entropy import cross_entropy_forward, cross_entropy_forward_backward
from .disk_cache import cache_directory, keeps_kernels
from .dropout import dropout_backward, dropout_forward
from .embedding import embedding_backward, embedding_forward
from .gradient_norm import scale, squared_norm, zero
from .head_norm import head_norm_backward, head_norm_forward
from .jit import MAX_CHUNKS as MAX_CHUNKS
from .jit import calls_may_overlap, watch_compilation
from .kv_cache import attention_decode, decode_scratch, kv_cache_write
from .layernorm import layernorm_backward, layernorm_forward
from .linear import linear_backward, linear_forward
from .lion import lion
from .lora import lora_backward, lora_forward
from .matmul import matmul, matmul_scratch
from .packed import (
    packed_backward,
    packed_embedding_forward,
    packed_forward,
    packed_rows_forward,
    packed_scratch,
)
from .prefill import attention_prefill
from .replay import Replay
from .residual import add
from .rms_norm import rms_norm_backward, rms_norm_forward
from .rope import rope_backward, rope_forward
from .rows import gather_rows, scatter_rows
from .sgd import sgd
from .softmax import softmax_backward, softmax_forward
from .swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "Replay",
    "adamw",
    "add",
    "attention_backward",
    "attention_decode",
    "attention_forward",
    "attention_pieces",
    "attention_prefill",
    "attention_scratch",
    "cache_directory",
    "calls_may_overlap",
    "cross_entropy_forward",
    "cross_entropy_forward_backward",
    "decode_scratch",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "gather_rows",
    "gelu_backward",
    "gelu_forward",
    "gelu_tanh_backward",
    "gelu_tanh_forward",
    "head_norm_backward",
    "head_norm_forward",
    "keeps_kernels",
    "kv_cache_write",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "lion",
    "lora_backward",
    "lora_forward",
    "matmul",
    "matmul_scratch",
    "packed_backward",
    "packed_embedding_forward",
    "packed_forward",
    "packed_rows_forward",
    "packed_scratch",
    "relu_backward",
    "relu_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rope_backward",
    "rope_forward",
    "scale",
    "scatter_rows",
    "sgd",
    "silu_backward",
    "silu_forward",
    "softmax_backward",
    "softmax_forward",
    "squared_norm",
    "swiglu_backward",
    "swiglu_forward",
    "watch_compilation",
    "zero",
]
