"""GGUF's container: every type of metadata, a file made by hand, and what is wrong with damaged ones."""

import struct

import numpy as np
import pytest
from gguf_bytes import LLAMA, entry, gguf_file, info, model_file, string, tensors
from refusals import refusal

from fastllm.formats import open_model
from fastllm.formats.gguf_file import MAX_DEPTH, MAX_ITEMS, read_gguf_file
from fastllm.packed import Packed
from fastllm.parameters import parameter_shapes
from fastllm.quantize import dequantize


def test_every_type_of_metadata(path):
    whole = {"u8": 200, "i8": -3, "u16": 60000, "i16": -7, "u32": 2**32 - 1, "i32": -(2**31), "u64": 2**64 - 1}
    single = {**whole, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "bool": True, "string": "é\0\n"}
    entries = [entry(f"one.{kind}", kind, content) for kind, content in single.items()]
    entries += [entry(f"many.{kind}", "array", (kind, [content] * 3)) for kind, content in single.items()]
    entries += [entry("none", "array", ("string", [])), entry("", "array", ("f32", []))]
    entries += [entry("nested", "array", ("array", [("i8", [1, 2]), ("string", ["a"]), ("array", [("u8", [])])]))]
    path.write_bytes(gguf_file(entries))
    metadata = read_gguf_file(path).metadata
    for kind, content in single.items():
        assert metadata[f"one.{kind}"] == content
        assert type(metadata[f"one.{kind}"]) is type(content)
        many = metadata[f"many.{kind}"]
        assert isinstance(many, list if kind == "string" else np.ndarray)
        assert list(many) == [content] * 3
    assert metadata["none"] == []
    assert metadata[""].tolist() == []
    numbers, strings, deep = metadata["nested"]
    assert (numbers.tolist(), strings, [inner.tolist() for inner in deep]) == ([1, 2], ["a"], [[]])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_a_file_by_hand_is_a_model(path, version, alignment):
    path.write_bytes(
        model_file({**LLAMA, "general.alignment": ("u32", alignment)}, alignment=alignment, version=version)
    )
    opened = open_model(path)
    expected = {"vocab_size": 5, "width": 8, "hidden": 6, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": 4}
    expected |= {"context": 16, "norm": "rms_norm", "norm_eps": 1e-5, "activation": "swiglu", "positions": "rope"}
    expected |= {"rope_theta": 10000.0, "rope_interleaved": True, "rope_scaling": None, "tied_head": True}
    expected |= {"attention_bias": False, "attention_output_bias": False, "feed_forward_bias": False}
    assert {field: getattr(opened.config, field) for field in expected} == expected
    assert (opened.source, opened.path) == ("gguf", path)
    assert opened.generation == {"end_ids": (2,)}
    general = {key: value for key, value in read_gguf_file(path).metadata.items() if key.startswith("general.")}
    assert general == {"general.architecture": "llama", "general.alignment": alignment}
    assert opened.tokenizer_metadata.keys() == {key for key in LLAMA if key.startswith("tokenizer.")}
    assert opened.tokenizer_metadata["tokenizer.ggml.tokens"][3] == "▁a"
    assert opened.tokenizer_metadata["tokenizer.ggml.scores"].tolist() == [0, 0, 0, -1, -2]
    decayed, others = parameter_shapes(opened.config)
    assert opened.weights.keys() == (decayed | others).keys()
    arrays = tensors()
    for ours, theirs in (
        ("embedding.token.weight", "token_embd.weight"),
        ("blocks.0.attention.query.weight", "blk.0.attn_q.weight"),
        ("blocks.0.feed_forward.down.weight", "blk.0.ffn_down.weight"),
    ):
        weight = opened.weights[ours]
        assert isinstance(weight, Packed) and not weight.data.flags.owndata and not weight.data.flags.writeable
        np.testing.assert_array_equal(dequantize(weight), arrays[theirs])
    norm = opened.weights["blocks.0.attention_norm.weight"]
    np.testing.assert_array_equal(norm, arrays["blk.0.attn_norm.weight"])
    assert norm.dtype == np.float32


TOO_DEEP = ("u8", [])
for _ in range(MAX_DEPTH + 1):
    TOO_DEEP = ("array", [TOO_DEEP])
ENTRY = entry("general.alignment", "u32", 32)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"", "got b''"),
        (b"GGML" + bytes(100), "got b'GGML'"),
        (b"GGUF", "got an end at 4"),
        (gguf_file(version=1), "got 1;"),
        (gguf_file(version=4), "got 4;"),
        (gguf_file(version=3 << 24), "got a big-endian file"),
        (gguf_file(counts=(1, 0))[:24], "got an end at 24"),
        (gguf_file(counts=(2**63, 0)), f"got {2**63}"),
        (gguf_file(counts=(0, 2**40)), f"got {2**40}"),
        (gguf_file([string(b"\xff") + ENTRY[25:]]), "must be UTF-8"),
        (gguf_file([struct.pack("<Q", 2**63)], counts=(0, 1)), f"got {2**63}"),
        (gguf_file([struct.pack("<Q", 65535)], counts=(0, 1)), "have 65535 more bytes"),
        (gguf_file([ENTRY, ENTRY]), "got 'general.alignment' twice"),
        (gguf_file([string("a") + struct.pack("<I", 13)]), "got 13;"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 6, 2**61)]), f"have {2**63} more bytes"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 8, 2**61)]), f"at most {MAX_ITEMS} items"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 9, 2**61)]), f"at most {MAX_ITEMS} items"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 8, 2**20)]), "an array of strings must lie within the file"),
        (gguf_file([string("a") + struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1)]), "a string must lie within the file"),
        (gguf_file([string("a") + struct.pack("<IIQQ", 9, 8, 1, 99)]), "a string must lie within the file"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 8, 1) + string(b"\xc3")]), "strings of UTF-8"),
        (gguf_file([entry("a", "array", TOO_DEEP)]), f"at most {MAX_DEPTH} deep"),
        (gguf_file([entry("a", "string", "")], counts=(0, 9)), "have 8 more bytes"),
        (gguf_file([string("a") + struct.pack("<IB", 7, 2)]), "boolean must be 0 or 1"),
        (gguf_file([entry("general.alignment", "u32", 0)]), "power of 2 from 8 to 1048576; got 0"),
        (gguf_file([entry("general.alignment", "u32", 4)]), "power of 2 from 8 to 1048576; got 4"),
        (gguf_file([entry("general.alignment", "u32", 24)]), "power of 2 from 8 to 1048576; got 24"),
        (gguf_file([entry("general.alignment", "u32", 1 << 31)]), f"got {1 << 31}"),
        (gguf_file([entry("general.alignment", "string", "32")]), "got '32'"),
        (gguf_file([], [info("a", (), 0, 0)], bytes(64)), "1 to 4 dimensions; got 0"),
        (gguf_file([], [info("a", (1,) * 5, 0, 0)], bytes(64)), "1 to 4 dimensions; got 5"),
        (gguf_file([], [info("a", (2, 0), 0, 0)], bytes(64)), "got (2, 0)"),
        (gguf_file([], [info("a", (2, 33), 8, 0)], bytes(640)), "a multiple of 32 weights, as Q8_0 has; got (2, 33)"),
        (gguf_file([], [info("a", (4,), 16, 0)], bytes(64)), "got IQ2_XXS; use a file of one of these"),
        (gguf_file([], [info("a", (4,), 99, 0)], bytes(64)), "got number 99"),
        (gguf_file([], [info("a", (4,), 0, 4)], bytes(64)), "a multiple of 32; got bytes 4 to 20"),
        (gguf_file([], [info("a", (4,), 0, 32)], bytes(32)), "got bytes 32 to 48 of 32"),
        (gguf_file([], [info("a", (4,), 0, 32)], bytes(47)), "got bytes 32 to 48 of 47"),
        (gguf_file([], [info("a", (2**63, 2**63, 2**63, 2**63), 0, 0)], bytes(32)), f"got bytes 0 to {2**254} of 32"),
        (gguf_file([], [info("a", (4,), 0, 2**64 - 32)], bytes(32)), f"got bytes {2**64 - 32}"),
        (gguf_file([], [info("a", (4,), 0, 0), info("a", (4,), 0, 32)], bytes(64)), "got 'a' twice"),
        (gguf_file([], [info("a", (9,), 0, 0), info("b", (4,), 0, 32)], bytes(64)), "must not overlap; got 'b'"),
        (gguf_file([], [info("a", (9,), 0, 0), info("b", (4,), 0, 0)], bytes(64)), "must not overlap"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(path, data, received):
    path.write_bytes(data)
    assert received in refusal(path, read_gguf_file)
