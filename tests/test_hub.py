"""Models by name: what is asked of huggingface_hub, and what is said where it can't help."""

import builtins
import shutil
import sys

import converting
import pytest

import fastllm
from fastllm import hub
from fastllm.checkpoint import load_its_tokenizer
from fastllm.errors import FastllmError
from fastllm.formats import open_model


@pytest.fixture
def asked(monkeypatch, tmp_path, tiny_model, tokenizer):
    """huggingface_hub with one model; the calls it got."""
    package = pytest.importorskip("huggingface_hub")
    calls = []
    fastllm.save(tmp_path / "kept", tiny_model, tokenizer)

    def snapshot_download(name, allow_patterns, ignore_patterns):
        assert not {"model.safetensors", "config.json", "tokenizer.json"} & {*ignore_patterns}
        calls.append((name, tuple(allow_patterns)))
        if name != "org/model":
            raise package.errors.LocalEntryNotFoundError("no connection,\nand nothing kept")
        return str(tmp_path / "kept")

    def hf_hub_download(name, file):
        calls.append((name, file))
        return str(tmp_path / "kept" / file)

    monkeypatch.setattr(package, "snapshot_download", snapshot_download)
    monkeypatch.setattr(package, "hf_hub_download", hf_hub_download)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_name_where_there_is_no_such_folder(asked, tiny_model):
    model, _ = fastllm.load("org/model", backend="numpy")
    assert model.parameters.flat.tobytes() == tiny_model.parameters.flat.tobytes()
    assert asked == [("org/model", tuple(hub.FILES))]
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in hub.FILES)


@pytest.mark.parametrize("file", ["some-Q8_0.gguf", "Q8_0/some.gguf", "a/b/c.gguf"])
def test_a_file_of_a_model(asked, tmp_path, file):
    assert hub.is_hub_name(f"org/model/{file}")
    assert hub.download(f"org/model/{file}") == tmp_path / "kept" / file
    assert asked == [("org/model", file)]


def test_the_files_of_a_model_are_asked_for_and_no_others():
    utils = pytest.importorskip("huggingface_hub").utils
    wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja",
              "additional_chat_templates/tool.jinja", "merges.txt", "tokenizer.model"]  # fmt: skip
    others = ["consolidated.safetensors", "pytorch_model.bin", "modeling.py", "checkpoint-5/model.safetensors",
              "onnx/config.json", "README.md"]  # fmt: skip
    found = utils.filter_repo_objects(wanted + others, allow_patterns=hub.FILES, ignore_patterns=hub.SUPERFLUOUS)
    assert [*found] == wanted


def test_a_repository_without_safetensors(asked, tmp_path, tokenizer):
    """As those of GGUF files or pickles; what has been downloaded of it says nothing about the reason."""
    (tmp_path / "kept" / "model.safetensors").unlink()
    message = r"org/model on .* must hold safetensors; got none; if it has GGUF files, name one: org/model/file\.gguf"
    with pytest.raises(FastllmError, match=message):
        fastllm.load("org/model")
    assert load_its_tokenizer("org/model").tokens == tokenizer.tokens
    shutil.rmtree(tmp_path / "kept")  # where nothing of it was asked for, there is no folder
    with pytest.raises(FastllmError, match=message):
        fastllm.load("org/model")


def test_converting_a_model_by_name_without_its_tokenizer(asked, tmp_path):
    shutil.rmtree(tmp_path / "kept")
    model, _ = converting.own(tmp_path / "kept")
    (tmp_path / "kept" / "tokenizer.json").unlink()
    assert converting.convert("org/model", "model.gguf") == 1
    assert converting.convert("org/model", "model.gguf", "--no-tokenizer") == 0
    assert open_model(tmp_path / "model.gguf").config.hidden == model.config.hidden


def test_a_folder_of_that_name_goes_first(asked, tmp_path, tiny_model, tokenizer):
    fastllm.save(tmp_path / "org" / "model", tiny_model, tokenizer)
    fastllm.load("org/model", backend="numpy")
    assert asked == []


def test_a_folder_of_that_name_whose_writer_was_killed(asked, tmp_path, tiny_model, tokenizer):
    """Between the two renames that replace it: it is put back, not looked for on the hub."""
    fastllm.save(tmp_path / "org" / "other", tiny_model, tokenizer)
    (tmp_path / "org" / "other").rename(tmp_path / "org" / ".other.old")
    assert fastllm.load("org/other", backend="numpy")[0].config == tiny_model.config
    assert not asked


def test_what_the_hub_does_not_give(asked):
    message = r"no file or folder org/other, and .*; got LocalEntryNotFoundError: no connection, and nothing kept"
    with pytest.raises(FastllmError, match=message):
        fastllm.load("org/other")


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "a/b/c",
        "/org/model",
        "../org/model",
        "org/model/../x.gguf",
        "org/model/a/../x.gguf",
        "org/model/.gguf",
        "org/model//x.gguf",
        "org/",
        "org/x y",
    ],
)
def test_what_is_no_name(asked, name):
    assert not hub.is_hub_name(name)
    with pytest.raises(FileNotFoundError, match="there must be a model at"):
        fastllm.load(name)
    assert asked == []


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(FastllmError, match=r'pip install "fastllm-numba\[hf\]"'):
        fastllm.load("org/model-that-is-nowhere")
