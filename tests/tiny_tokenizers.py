"""Tokenizers of the kinds that real models bring, trained on the spot, and texts that are hard to tokenise."""

import functools
import json

import pytest
from hypothesis import strategies as st

CORPUS = [
    "The cat sat on the mat. The cats sat on the mats, and it's 12345 o'clock!\n\n  def f(x):\n    return x\t# ok\n",
    "Über café, naïve façade; 你好，世界。 مرحبا بالعالم 👍🏽 👨‍👩‍👧 <|im_start|>user end of text <s> </s>",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

HARD_TEXTS = [
    *("", " ", "  ", "a", " a", "  a", "a ", "   a  b   ", "\n", "\n\n\n", "\t\tx\t", " \n \n", "\r\n\r"),
    *("12345 6789 3.14", "１２３ ² Ⅷ ½", "it's I'LL don'T 'ſ", "abc def\n\n  ghi", "The cat sat on the mats"),
    *("café", "cafe\u0301", "👨‍👩‍👧‍👦 👍🏽", "你好，世界。", "مرحبا بالعالم ١٢٣", "नमस्ते ภาษาไทย", "ſK", "Ġ Ċ ▁", "▁▁a"),
    *("<|im_end|>", "<|im_start|>user\nhi<|im_end|>", "x<|endoftext|>y", "<s>", "</s>", "<0x0A>", "<unk>"),
    *("\u00a0x\u3000y\u2028z\u200b", "\x00a\x01\x7f", "\U0010ffff\ue000\ufffd", "a" * 300, "<|im_<|im_end|>end|>"),
]
PIECES = [*HARD_TEXTS[:-2], " ", "\n", "the", "cat", "1", "'s", "<|", "|>", "im_end", "é", "\u0301"]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


SETTINGS = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": TEMPLATE}
LLAMA = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


@functools.cache
def byte_level():
    """A `tokenizers.Tokenizer` of GPT-2's kind: 380 tokens, all bytes among them; control tokens are 0, 1 and 2."""
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=CONTROL,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    built.train_from_iterator(CORPUS * 3, trainer)
    return built


@functools.cache
def byte_fallback(prepend="normalizer"):
    """One of Llama 2's kind: "▁" for spaces, bytes to fall back on; <unk>, <s> and </s> are 0, 1 and 2."""
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    decoders, normalizers = tokenizers.decoders, tokenizers.normalizers
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    if prepend == "normalizer":
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        built.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    built.decoder = decoders.Sequence(steps)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=80,
        show_progress=False,
    )
    built.train_from_iterator([text.replace(" ", "▁") for text in CORPUS * 3], trainer)
    document = json.loads(built.to_str())
    document["added_tokens"] = document["added_tokens"][:3]  # the trainer calls the bytes special too
    document["post_processor"] = begins_with("<s>", 1)
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def begins_with(text, token_id):
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]}},
    }


def write_folder(folder, built, **settings):
    """tokenizer.json and tokenizer_config.json, as a model's folder has them."""
    folder.mkdir(exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@functools.cache
def gguf_metadata(path):
    """What a GGUF file says of its tokenizer, as the package gguf reads it."""
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}


def added(token_id, text, special=False, **flags):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags
    return {"id": token_id, "content": text, "special": special, **flags}
