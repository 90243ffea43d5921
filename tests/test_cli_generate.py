"""fastllm generate: the library's text on stdout, and a line for what is wrong."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from recomputed_cache import in_a_process_of_its_own
from tiny_checkpoint import learned, write_checkpoint

import fastllm
from fastllm.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint"))


def generate(*arguments):
    return main(["generate", *arguments, "--backend", "numpy"])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--max-tokens", "3"], {"max_tokens": 3}),
        (
            ["--temperature", "1.5", "--seed", "4", "--top-k", "9"],
            {"temperature": 1.5, "seed": 4, "top_k": 9},
        ),
        (["--temperature", "2", "--top-p", ".7"], {"temperature": 2.0, "top_p": 0.7}),
        (["--stop", "far", "--stop", "model"], {"stop": ("far", "model")}),
        (["--beams", "3", "--length-penalty", "-1"], {"beams": 3, "length_penalty": -1.0}),
    ],
)
@pytest.mark.parametrize("prompt", ["Is it", ""])
def test_writes_what_the_library_generates(checkpoint, capsys, prompt, words, options):
    assert generate(checkpoint, prompt, *words) == 0
    assert capsys.readouterr().out == fastllm.generate(*learned(), prompt, **options) + "\n"


def test_a_run_folder_is_as_good_as_its_checkpoint(checkpoint, capsys):
    texts = []
    for folder in checkpoint, os.path.dirname(checkpoint):
        assert generate(folder, "Who") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_reads_the_prompt_from_standard_input(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is"))
    assert generate(checkpoint, "-") == 0
    assert capsys.readouterr().out == fastllm.generate(*learned(), "What is") + "\n"


def test_text_appears_as_it_is_generated(checkpoint, monkeypatch):
    shown = []
    decode = fastllm.Model.decode

    class Output(io.StringIO):
        def flush(self):
            shown.append(self.getvalue())

    def watched(*arguments):
        steps.append(len(shown))
        return decode(*arguments)

    steps = []
    monkeypatch.setattr(fastllm.Model, "decode", watched)
    monkeypatch.setattr("sys.stdout", Output())
    assert generate(checkpoint, "Is it", "--max-tokens", "5") == 0
    assert steps == [1, 2, 3]  # a word is out before the next is computed
    assert shown[:3] == [" is", " is near", " is near."]


def damaged(folder):
    model, tokenizer = learned()
    fastllm.save(folder, model, tokenizer)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "0"], "top_p must be above 0"),
        (["--temperature", "-1"], "temperature must be finite and not negative; got -1.0"),
        (["--temperature", "nan"], "temperature must be finite"),
        (["--top-k", "-3"], "top_k must not be negative"),
        (["--max-tokens", "0"], "max_tokens must be 1 or more"),
        (["--seed", "-1"], "seed must not be negative"),
        (["--stop", ""], "stop strings must not be empty"),
        (["--beams", "0"], "beams must be 1 or more"),
        (["--beams", "2", "--temperature", "1"], "beams above 1 need temperature=0"),
        (["--length-penalty", "inf"], "length_penalty must be between"),
    ],
)
def test_wrong_options_are_wrong_use_and_no_model_is_loaded(tmp_path, capsys, arguments, message):
    assert generate(str(tmp_path / "nowhere"), "Is it", *arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("fastllm: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize(
    "arguments", [[], ["model"], ["model", "text", "--top-k", "many"], ["model", "text", "--backend", "fast"]]
)
def test_words_that_make_no_command_are_wrong_use(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(["generate", *arguments])
    assert exit.value.code == 2
    assert "fastllm: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "got nothing; check the name"),
        (lambda folder: folder, "or a checkpoint folder; got neither"),
        (lambda folder: damaged(folder / "cut"), "whole safetensors file"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_a_failure(tmp_path, capsys, make, message):
    assert generate(str(make(tmp_path)), "Is it") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_prompt_longer_than_the_context_is_a_failure(checkpoint, capsys):
    assert generate(checkpoint, "far " * 40) == 1
    assert "context of 32 tokens; got 40" in capsys.readouterr().err


@in_a_process_of_its_own
def test_a_process_of_its_own_on_the_kernels(checkpoint):
    command = [sys.executable, "-m", "fastllm", "generate", checkpoint, "Is it", "--max-tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (0, fastllm.generate(*learned(), "Is it", max_tokens=4) + "\n")


def test_a_model_whose_logits_are_not_finite_is_a_failure(tmp_path, capsys):
    model, tokenizer = learned()
    broken = fastllm.Model(model.config, backend="numpy")
    broken.parameters.flat[:] = model.parameters.flat
    broken.parameters["final_norm.weight"][...] = np.float32(3e38)
    fastllm.save(tmp_path / "broken", broken, tokenizer)
    with np.errstate(all="ignore"):
        assert generate(str(tmp_path / "broken"), "Is it") == 1
    assert "the largest logit must be finite" in capsys.readouterr().err
