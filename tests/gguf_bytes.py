"""GGUF files put together by hand, right ones and wrong ones."""

import struct

import numpy as np

TYPES = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "string": (8, None), "array": (9, None), "u64": (10, "<Q"),
    "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    """Without its type. An array's content is (kind of the items, items)."""
    if kind == "string":
        return string(content)
    if kind == "array":
        inner, items = content
        return struct.pack("<IQ", TYPES[inner][0], len(items)) + b"".join(value(inner, item) for item in items)
    return struct.pack(TYPES[kind][1], content)


def entry(key, kind, content):
    return string(key) + struct.pack("<I", TYPES[kind][0]) + value(kind, content)


def info(name, shape, number, offset):
    """shape as NumPy has it."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, offset)


def gguf_file(entries=(), infos=(), data=b"", *, version=3, alignment=32, counts=None, magic=b"GGUF"):
    """entries, infos: bytes each; data: what the tensors hold."""
    n_infos, n_entries = counts or (len(infos), len(entries))
    head = magic + struct.pack("<IQQ", version, n_infos, n_entries) + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


WIDTH, HIDDEN, HEADS, VOCABULARY = 8, 6, 2, 5
LLAMA = {
    "general.architecture": ("string", "llama"),
    "llama.context_length": ("u32", 16),
    "llama.embedding_length": ("u32", WIDTH),
    "llama.block_count": ("u32", 1),
    "llama.feed_forward_length": ("u32", HIDDEN),
    "llama.attention.head_count": ("u32", HEADS),
    "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
    "tokenizer.ggml.model": ("string", "llama"),
    "tokenizer.ggml.tokens": ("array", ("string", ["<unk>", "<s>", "</s>", "▁a", "b"])),
    "tokenizer.ggml.scores": ("array", ("f32", [0.0, 0.0, 0.0, -1.0, -2.0])),
    "tokenizer.ggml.token_type": ("array", ("i32", [2, 3, 3, 1, 1])),
    "tokenizer.ggml.bos_token_id": ("u32", 1),
    "tokenizer.ggml.eos_token_id": ("u32", 2),
}
SHAPES = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_k.weight": (WIDTH, WIDTH),
    "blk.0.attn_v.weight": (WIDTH, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.ffn_gate.weight": (HIDDEN, WIDTH),
    "blk.0.ffn_up.weight": (HIDDEN, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, HIDDEN),
    "output_norm.weight": (WIDTH,),
}


def tensors(shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def model_file(fields=LLAMA, arrays=None, alignment=32, **options):
    """A whole model; fields: key -> (kind, content), without those that are None; arrays: name -> float32."""
    infos, data = [], b""
    for name, array in (tensors() if arrays is None else arrays).items():
        infos.append(info(name, array.shape, {"float32": 0, "float16": 1}[array.dtype.name], len(data)))
        data += array.tobytes()
        data += bytes(-len(data) % alignment)
    entries = [entry(key, *content) for key, content in fields.items() if content is not None]
    return gguf_file(entries, infos, data, alignment=alignment, **options)
