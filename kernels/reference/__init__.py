"""The NumPy twin of every kernel: the same file, function and arguments, written from the formula.

A twin computes in the dtype of its arrays: float32 to run a model, float64 to judge the kernels.
A twin imports nothing from a kernel or another twin's file, and ignores the scratch it is given.
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
from .attention import attention_backward, attention_forward
from .cross_entropy import cross_entropy_forward, cross_entropy_forward_backward
from .dropout import dropout_backward, dropout_forward
from .embedding import embedding_backward, embedding_forward
from .gradient_norm import scale, squared_norm, zero
from .head_norm import head_norm_backward, head_norm_forward
from .kv_cache import attention_decode, kv_cache_write
from .layernorm import layernorm_backward, layernorm_forward
from .linear import linear_backward, linear_forward
from .lion import lion
from .lora import lora_backward, lora_forward
from .matmul import matmul
from .packed import packed_backward, packed_embedding_forward, packed_forward, packed_rows_forward
from .prefill import attention_prefill
from .residual import add
from .rms_norm import rms_norm_backward, rms_norm_forward
from .rope import rope_backward, rope_forward
from .rows import gather_rows, scatter_rows
from .sgd import sgd
from .softmax import softmax_backward, softmax_forward
from .swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "adamw",
    "add",
    "attention_backward",
    "attention_decode",
    "attention_forward",
    "attention_prefill",
    "cross_entropy_forward",
    "cross_entropy_forward_backward",
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
    "kv_cache_write",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "lion",
    "lora_backward",
    "lora_forward",
    "matmul",
    "packed_backward",
    "packed_embedding_forward",
    "packed_forward",
    "packed_rows_forward",
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
    "zero",
]
