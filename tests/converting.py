"""Small models to convert, and the command."""

import numpy as np
import pytest

pytest.importorskip("tokenizers")

import huggingface_models as models

import fastllm
from fastllm import cli
from fastllm.tokenizers import ByteTokenizer, HuggingFaceTokenizer

CONTEXT = 48
LLAMA = {"norm": "rms_norm", "activation": "swiglu", "positions": "rope", "attention_bias": False,
         "feed_forward_bias": False, "kv_heads": 2}  # fmt: skip
CONFIGS = {
    "llama": LLAMA,
    "llama on pairs": {**LLAMA, "rope_interleaved": True, "tied_head": False, "attention_bias": True},
    "gpt2": {},
}


def convert(*words):
    """Its exit status."""
    return cli.main(["convert", *map(str, words)])


def own(folder, tokenizer=None, name="llama", more_rows=0, **options):
    """A checkpoint of ours, all of whose parameters are random; the model and its tokenizer."""
    tokenizer = tokenizer or ByteTokenizer()
    config = fastllm.ModelConfig(
        **{"vocab_size": tokenizer.vocab_size + more_rows, "width": 32, "hidden": 48, "layers": 2, "heads": 4,
           "context": CONTEXT, **CONFIGS.get(name, {}), **options},
    )  # fmt: skip
    model = fastllm.Model(config, seed=3, backend="numpy")
    noise = np.random.default_rng(0).standard_normal(model.parameters.flat.shape, dtype=np.float32)
    model.parameters.flat += np.float32(0.1) * noise
    fastllm.save(folder, model, tokenizer)
    return model, tokenizer


def byte_level(vocabulary=models.VOCABULARY):
    """GPT-2's kind of tokenizer."""
    printable = [chr(number) for number in range(ord("!"), ord("~") + 1)]
    characters = sorted(printable, key=lambda character: character not in "abc.,'-")[: vocabulary - 8]
    tokens = [*("<|endoftext|>", "<s>", "<|im_end|>"), *characters, "Ġ", "Ċ", "ab", "abc", "Ġab"]
    ids = {token: i for i, token in enumerate(tokens)}
    added = [{"id": i, "content": tokens[i], "special": True} for i in range(3)]
    splitter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": splitter, "post_processor": None,
        "decoder": splitter, "model": {"type": "BPE", "vocab": ids, "merges": ["a b", "ab c", "Ġ ab"]},
    }  # fmt: skip
    template = "{{ messages[0]['content'] }}<|im_end|>"
    return HuggingFaceTokenizer(document, {"eos_token": "<|im_end|>", "bos_token": "<s>", "chat_template": template})
