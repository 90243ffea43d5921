"""A trained model of llama2.c writes the text that llama2.c writes, to the byte."""

import shutil

import numpy as np
import pytest

import fastllm
from fastllm.errors import FormatError
from fastllm.formats.llama2c import read_llama2c
from fastllm.tokenizers import Llama2cTokenizer

TOKENS = 200  # that case0.txt was asked for


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "stories260K"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Llama2cTokenizer.read(folder / "tok512.bin")


@pytest.fixture(scope="module", params=["numpy", "numba"])
def model(request, folder):
    config, parameters = read_llama2c(folder / "stories260K.bin")
    model = fastllm.Model(config, backend=request.param)
    model.parameters.load(parameters)
    return model


@pytest.fixture(scope="module")
def story(folder):
    text = (folder / "case0.txt").read_text(encoding="utf-8")
    return text.removesuffix("\n")  # with which run.c ends its output


@pytest.fixture(scope="module")
def written(model, tokenizer):
    """The ids of the most probable text, <s> first, as run.c writes it at temperature 0 from no prompt."""
    ids = [tokenizer.begin_id]
    cache = model.new_cache()
    logits = model.prefill(np.array(ids), None, cache)
    for _ in range(TOKENS):
        token = int(logits[0].argmax())
        if token in tokenizer.control_ids:
            break
        ids.append(token)
        if len(ids) <= TOKENS:
            logits = model.decode(np.array([token]), cache)
    return ids


def test_the_text(written, tokenizer, story):
    assert tokenizer.decode(written) == story


def test_the_first_tokens(written, folder):
    """case0.tokens.txt has a line of ids: "tokens 1 403 407 ..."."""
    (line,) = (s for s in (folder / "case0.tokens.txt").read_text().splitlines() if s.startswith("tokens "))
    ids = [int(word) for word in line.split()[1:]]
    assert written[: len(ids)] == ids


def test_training_forward_agrees(model, written):
    """Each token is the most probable one after those before it, without the cache too."""
    logits = model.forward(np.array(written[:-1]))
    assert logits.argmax(axis=1).tolist() == written[1:]


def test_the_story_is_encoded_as_it_was_written(tokenizer, story, written):
    """A text can be tokenized in many ways; this model was trained on what `encode` gives."""
    assert tokenizer.encode(story).tolist() == written[1:]


def test_opened_with_its_tokenizer(folder, story, tmp_path):
    """The whole way, from two files to the published text."""
    model, tokenizer = fastllm.load(folder / "stories260K.bin")
    assert fastllm.generate(model, tokenizer, "", max_tokens=TOKENS, temperature=0) == story
    assert model.is_frozen
    shutil.copy(folder / "stories260K.bin", tmp_path)
    with pytest.raises(FormatError, match=r"got no tok512\.bin or tokenizer\.bin"):
        fastllm.load(tmp_path / "stories260K.bin")
    shutil.copy(folder / "tok512.bin", tmp_path / "tokenizer.bin")
    assert fastllm.load(tmp_path / "stories260K.bin")[1].vocab_size == 512
