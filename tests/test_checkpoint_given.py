"""What `save` is given that is no model to be opened again, or not in Python's own numbers."""

import os

import numpy as np
import pytest
from refusals import refusal

import fastllm
from fastllm.checkpoint import MAX_PROGRESS, PROGRESS, TOKENIZER, load_progress
from fastllm.small_files import MAX_JSON

NAME = "blocks.0.attention.query.weight"


def test_what_is_not_finite_does_not_take_the_place_of_a_model(saved, tiny_model, tokenizer):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    tiny_model.parameters[NAME][0, 0] = np.inf
    with pytest.raises(ValueError, match=f"{NAME} must be finite to be saved"):
        fastllm.save(saved, tiny_model, tokenizer)
    tiny_model.parameters[NAME][0, 0] = 0
    tiny_model.add_lora(rank=2).flat[5] = np.nan
    with pytest.raises(ValueError, match="must be finite to be saved"):
        fastllm.save_adapter(saved.parent / "adapter", tiny_model)
    assert not (saved.parent / "adapter").exists()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_numbers_of_numpy_are_saved(tmp_path, tiny_model, tokenizer):
    options = {"temperature": np.float32(0.5), "top_k": np.int64(3), "logit_bias": {np.int64(3): 1}}
    tiny_model.generation_options = options
    fastllm.save(tmp_path / "saved", tiny_model, tokenizer, progress={"loss": np.float32(0.5)})
    again, _ = fastllm.load(tmp_path / "saved")
    assert again.generation_options == {"temperature": 0.5, "top_k": 3, "logit_bias": {3: 1.0}}
    assert load_progress(tmp_path / "saved") == {"loss": 0.5}


def test_progress_may_be_long(tmp_path, tiny_model, tokenizer):
    progress = {"losses": [0.5, float("inf")], "notes": "x" * (MAX_JSON + 1)}
    fastllm.save(tmp_path / "saved", tiny_model, tokenizer, progress=progress)
    assert load_progress(tmp_path / "saved") == progress


def test_progress_that_could_be_read_for_ever(tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "saved"
    path = folder / PROGRESS
    fastllm.save(folder, tiny_model, tokenizer, progress={})
    os.truncate(path, MAX_PROGRESS + 1)
    assert f"must have at most {MAX_PROGRESS} bytes" in refusal(path, lambda _: load_progress(folder))
    if hasattr(os, "mkfifo"):
        path.unlink()
        os.mkfifo(path)
        assert "must be a file; got a folder, pipe or device" in refusal(path, lambda _: load_progress(folder))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files")
def test_a_tokenizer_that_could_be_read_for_ever(saved):
    (saved / TOKENIZER).unlink()
    os.mkfifo(saved / TOKENIZER)
    assert "must be a file; got a folder, pipe or device" in refusal(saved / TOKENIZER, lambda _: fastllm.load(saved))


def test_a_model_for_checks_is_not_saved(tmp_path, tokenizer):
    """It would come back as another, of float32."""
    config = fastllm.preset("nano", vocab_size=tokenizer.vocab_size)
    with pytest.raises(ValueError, match="a checkpoint must be of a float32 model; got one of float64"):
        fastllm.save(tmp_path / "model", fastllm.Model(config, backend="numpy", dtype=np.float64), tokenizer)


def test_a_tokenizer_is_needed(tmp_path, tiny_model):
    with pytest.raises(TypeError, match="a checkpoint holds a Tokenizer; got NoneType"):
        fastllm.save(tmp_path / "model", tiny_model, None)
