"""write_huggingface: a folder opens as what was written, and is written whole or not at all."""

import json

import numpy as np
import pytest
from gguf_bytes import model_file
from small_folders import LLAMA, parameters_of

from fastllm import FormatError, ModelConfig
from fastllm.formats import open_model, write_gguf, write_huggingface
from fastllm.formats.huggingface_config import config_from_huggingface
from fastllm.packed import Packed


def test_generation_there_and_back(tmp_path):
    config = config_from_huggingface(LLAMA)
    for number, facts in enumerate(
        [
            {"end_ids": (2, 5), "temperature": 0.6, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.1},
            {"end_ids": (2,), "temperature": 0.0},
            {"end_ids": (), "min_p": 0.1, "typical_p": 0.9, "max_tokens": 9, "stop": ("x", "y")},
            {"end_ids": (), "temperature": 0.7},
            {"end_ids": (), "length_penalty": 0.5, "early_stopping": "never"},
        ]
    ):
        folder = tmp_path / str(number)
        write_huggingface(folder, config, parameters_of(config), generation=facts)
        everything = {"top_k": 0} if facts.get("temperature") else {}  # in their words
        assert open_model(folder).generation == everything | facts
        written = json.loads((folder / "generation_config.json").read_text())
        assert written.get("do_sample") is (facts["temperature"] > 0 if "temperature" in facts else None)


def test_other_files_come_along(tmp_path):
    config = config_from_huggingface(LLAMA)
    write_huggingface(tmp_path / "a", config, parameters_of(config), files={"tokenizer.json": b"{}\n"})
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == b"{}\n"
    for name in "config.json", "model.safetensors", "../x", "a/b":
        with pytest.raises(ValueError, match="names of their own"):
            write_huggingface(tmp_path / "b", config, parameters_of(config), files={name: b""})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_not_written_over(tmp_path):
    config = config_from_huggingface(LLAMA)
    write_huggingface(tmp_path / "a", config, parameters_of(config))
    with pytest.raises(FileExistsError, match="a new or an empty folder"):
        write_huggingface(tmp_path / "a", config, parameters_of(config))
    (tmp_path / "empty").mkdir()
    write_huggingface(tmp_path / "empty" / "new", config, parameters_of(config))
    (tmp_path / "hollow").mkdir()
    write_huggingface(tmp_path / "hollow", config, parameters_of(config))
    assert open_model(tmp_path / "hollow").config == config


def test_a_folder_that_can_not_be_written_whole_is_not_there(tmp_path):
    config = config_from_huggingface(LLAMA)
    parameters = parameters_of(config)
    parameters["embedding.token.weight"][0, 0] = 1e6
    with pytest.raises(FormatError, match=r"model.embed_tokens.weight can't be written: .*use F32"):
        write_huggingface(tmp_path / "a", config, parameters, dtype="float16")
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16; got 'int8'"):
        write_huggingface(tmp_path / "a", config, parameters, dtype="int8")
    with pytest.raises(FormatError, match="missing"):
        write_huggingface(tmp_path / "a", config, {})
    post = ModelConfig.from_dict({**config.to_dict(), "norm_position": "post"})
    with pytest.raises(FormatError, match="norm_position=pre"):
        write_huggingface(tmp_path / "a", post, parameters)
    factors = ModelConfig.from_dict({**config.to_dict(), "rope_scaling": {"type": "factors", "factors": [2.0]}})
    with pytest.raises(FormatError, match="rope_scaling=None"):
        write_huggingface(tmp_path / "a", factors, parameters)
    assert list(tmp_path.iterdir()) == []


def test_from_gguf_to_a_folder_and_back(tmp_path):
    """Through the permutation of queries and keys and back to the same bytes."""
    (tmp_path / "a.gguf").write_bytes(model_file())
    first = open_model(tmp_path / "a.gguf")
    write_huggingface(tmp_path / "folder", first.config, first.weights, generation=first.generation)
    second = open_model(tmp_path / "folder")
    assert not second.config.rope_interleaved
    write_gguf(tmp_path / "b.gguf", second.config, second.weights, "F32", first.tokenizer_metadata)
    third = open_model(tmp_path / "b.gguf")
    assert (third.config, third.generation) == (first.config, first.generation)
    for name, weight in first.weights.items():
        one, other = (w.data if isinstance(w, Packed) else w for w in (weight, third.weights[name]))
        np.testing.assert_array_equal(one, other, err_msg=name)
    query = "blocks.0.attention.query.weight"
    assert (first.weights[query].data != second.weights[query].data).any()


def test_a_mapped_file_may_be_replaced_by_its_own_copy(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(model_file())
    opened = open_model(path)
    before = {name: w.data.copy() if isinstance(w, Packed) else w.copy() for name, w in opened.weights.items()}
    write_gguf(path, opened.config, opened.weights, "F16")
    for name, w in opened.weights.items():
        np.testing.assert_array_equal(w.data if isinstance(w, Packed) else w, before[name])
