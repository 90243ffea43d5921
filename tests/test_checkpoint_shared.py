"""Checkpoints that others read and write meanwhile: processes one folder, threads one model."""

import copy
import dataclasses
import os
import threading

import pytest
from saved_models import load

import fastllm
from fastllm import checkpoint
from fastllm.formats import model_folder
from fastllm.tokenizers import WordTokenizer


@pytest.mark.parametrize("times", [1, model_folder.READS])
def test_a_folder_that_is_replaced_while_it_is_read(saved, tiny_model, tokenizer, monkeypatch, times):
    """Model and tokenizer come from the same save."""
    read, left = checkpoint.load_tokenizer, list(range(times))
    other = WordTokenizer.build(["quite other words than these"])

    def disturbed(path):
        found = read(path)
        if left:
            seed = left.pop()
            words = tokenizer if seed % 2 else other
            config = dataclasses.replace(tiny_model.config, vocab_size=words.vocab_size)
            fastllm.save(saved, fastllm.Model(config, seed=seed, backend="numpy"), words)
        return found

    monkeypatch.setattr(checkpoint, "load_tokenizer", disturbed)
    model, words = load(saved)
    assert not left
    assert words.tokens == other.tokens
    assert model.config.vocab_size == words.vocab_size


def test_threads_that_save_to_one_folder(saved, tiny_model, tokenizer):
    """No save fails, and the folder holds the last one."""
    failed = []

    def save(model):
        try:
            for _ in range(10):
                fastllm.save(saved, model, tokenizer)
        except Exception as error:
            failed.append(error)

    models = [tiny_model, copy.deepcopy(tiny_model)]
    models[1].parameters.flat += 1
    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = load(saved)[0].parameters.flat.tobytes()
    assert found in [model.parameters.flat.tobytes() for model in models]
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("kept", ["saved", "copied"])
def test_what_is_kept_is_between_two_updates(saved, tiny_model, tokenizer, kept):
    """A thread that is in one has the model's lock."""
    found = []
    keep = {"saved": lambda: fastllm.save(saved, tiny_model, tokenizer), "copied": lambda: copy.deepcopy(tiny_model)}
    thread = threading.Thread(target=lambda: found.append(keep[kept]()))
    with tiny_model._lock:
        thread.start()
        thread.join(timeout=0.3)
        assert thread.is_alive()
        tiny_model.parameters.flat[...] = 7
    thread.join()
    model = found[0] or load(saved)[0]
    assert (model.parameters.flat == 7).all()
