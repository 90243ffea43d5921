"""What stands in folders as people publish them: older names, limits that are off, more tokens than rows."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from converting import byte_level
from test_open_model import GPT2, LLAMA, make_folder

import fastllm
from fastllm.formats import open_model
from fastllm.formats.huggingface_config import config_from_huggingface

PAD = {"content": "<pad>", "special": True}


@pytest.mark.parametrize(
    ("fields", "key"), [(LLAMA, "hidden_act"), (GPT2, "activation_function")], ids=["llama", "gpt2"]
)
def test_swish_is_silu(fields, key):
    swish, silu = (config_from_huggingface({**fields, key: name}) for name in ("swish", "silu"))
    assert swish == silu


@pytest.mark.parametrize(("more", "context"), [({}, None), ({"original_max_position_embeddings": 3}, 3)])
def test_rope_that_is_stretched_beyond_the_context_alone(more, context):
    plain = config_from_huggingface(LLAMA)
    config = config_from_huggingface({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0, **more}})
    assert (config.rope_scaling, config.rope_theta) == (None, plain.rope_theta)
    assert config.context == (context or plain.context)


def test_no_limit_by_another_name(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": -1}))
    assert open_model(tmp_path).generation["top_k"] == 0


@pytest.fixture
def folder(tmp_path):
    """A model of as many rows as its tokenizer has tokens."""
    tokenizer = byte_level()
    make_folder(tmp_path, {**LLAMA, "vocab_size": tokenizer.vocab_size})
    tokenizer.save_into(tmp_path)
    return tmp_path


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json"])
def test_added_tokens_that_the_model_has_no_rows_for(folder, where):
    before = fastllm.load(folder, backend="numpy")[1]
    size = before.vocab_size
    settings = folder / "tokenizer_config.json"
    if where == "added_tokens.json":
        (folder / where).write_text(json.dumps({"<pad>": size}))
    elif where == "added_tokens_decoder":
        change(settings, added_tokens_decoder={str(size): PAD})
    else:
        entries = json.loads((folder / where).read_text())["added_tokens"]
        change(folder / where, added_tokens=[*entries, {"id": size, **PAD}])
    change(settings, pad_token="<pad>", extra_special_tokens={"image_token": "<pad>"}, fill_token="<pad>")
    with pytest.warns(UserWarning, match="tokens that the model has no rows for are left out: '<pad>'"):
        model, tokenizer = fastllm.load(folder, backend="numpy")
    assert (tokenizer.tokens, tokenizer.control_ids) == (before.tokens, before.control_ids)
    assert (tokenizer.end_ids, tokenizer.begin_id) == (before.end_ids, before.begin_id)
    assert tokenizer.chat_template == before.chat_template
    assert tokenizer.encode("abc <pad>").tolist() == before.encode("abc <pad>").tolist()
    assert np.isfinite(model.forward(tokenizer.encode("abc"))).all()


def test_a_warning_shows_no_control_characters_of_a_token(folder):
    size = fastllm.load(folder, backend="numpy")[1].vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<\x1b[2J\n" + "x" * 1000: size}))
    with pytest.warns(UserWarning, match=r"left out: '<\\x1b\[2J\\nx+\.\.\.x+'$"):
        fastllm.load(folder, backend="numpy")


def test_a_vocabulary_of_another_model_is_refused(folder):
    other = byte_level(40)
    make_folder(folder, {**LLAMA, "vocab_size": other.vocab_size - 1})
    with pytest.raises(fastllm.FormatError, match="must have at most as many tokens as the model"):
        fastllm.load(folder, backend="numpy")


def test_an_adapter_saved_with_a_tokenizer_of_one_token_more(folder, tmp_path_factory):
    """As where a padding token was added and the base has not been resized."""
    model, tokenizer = fastllm.load(folder, backend="numpy")
    model.add_lora(rank=2)
    adapter = tmp_path_factory.mktemp("adapter")
    fastllm.save_adapter(adapter, model)
    tokenizer.save_into(adapter)
    entries = json.loads((adapter / "tokenizer.json").read_text())["added_tokens"]
    change(adapter / "tokenizer.json", added_tokens=[*entries, {"id": tokenizer.vocab_size, **PAD}])
    with pytest.warns(UserWarning, match="tokens that the model has no rows for are left out: '<pad>'"):
        _, its_tokenizer = fastllm.load(adapter, backend="numpy")
    assert its_tokenizer.tokens == tokenizer.tokens


def test_a_tokenizer_in_sentencepieces_file_alone(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(fastllm.FormatError, match=r"must hold tokenizer\.json; got tokenizer\.model alone; write"):
        fastllm.load(tmp_path)
