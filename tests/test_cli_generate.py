"""fastllm generate: the library's text on stdout, and a line for what is wrong."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_checkpoint import learned, write_checkpoint

import fastllm
from fastllm.cli import main
from fastllm.layers.kv_cache import KVCache


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
        (
            ["--temperature", "2", "--min-p", ".1", "--typical-p", ".8"],
            {"temperature": 2.0, "min_p": 0.1, "typical_p": 0.8},
        ),
        (
            ["--repetition-penalty", "3", "--presence-penalty", "1", "--frequency-penalty", ".5"],
            {"repetition_penalty": 3.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        ),
        (["--speculate", "4"], {"speculate": 4}),
        (["--stop", "far", "--stop", "model"], {"stop": ("far", "model")}),
        (
            ["--beams", "3", "--length-penalty", "-1", "--early-stopping", "never"],
            {"beams": 3, "length_penalty": -1.0, "early_stopping": "never"},
        ),
    ],
)
@pytest.mark.parametrize("prompt", ["Is it", ""])
def test_writes_what_the_library_generates(checkpoint, capsys, prompt, words, options):
    assert generate(checkpoint, prompt, *words) == 0
    assert capsys.readouterr().out == fastllm.generate(*learned(), prompt, **options) + "\n"


def test_texts_are_utf_8_where_the_system_reads_ascii_only(checkpoint, tmp_path):
    """And names of files are what they are."""
    shutil.copytree(checkpoint, tmp_path / "modèle")
    locale = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["generate", str(tmp_path / "modèle"), "é 中", "--stop", "ß", "--backend", "numpy"]
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", *words], env=os.environ | locale, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == fastllm.generate(*learned(), "é 中", stop="ß") + "\n"


@pytest.mark.parametrize(("words", "expected"), [([], "float32"), (["--cache-dtype", "float16"], "float16")])
@pytest.mark.parametrize("command", [["generate", "Is it"], ["generate", "Is it", "--beams", "2"], ["chat"]])
def test_what_the_cache_keeps(checkpoint, capsys, monkeypatch, command, words, expected):
    made = []

    class Cache(KVCache):
        def __init__(self, config, slots, dtype):
            super().__init__(config, slots, dtype)
            made.append(np.dtype(dtype).name)

    monkeypatch.setattr("fastllm.model.KVCache", Cache)
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it far?\n"))
    name, *prompt = command
    assert main([name, checkpoint, *prompt, *words, "--backend", "numpy"]) == 0
    assert set(made) == {expected}
    assert capsys.readouterr().out.strip()


def test_options_may_stand_before_the_prompt(checkpoint, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("Is it", encoding="utf-8")
    texts = []
    for words in (["Is it", "--json", "--max-tokens", "3"], ["--max-tokens", "3", "--json", "Is it"]):
        assert main(["generate", "--backend", "numpy", checkpoint, *words]) == 0
        texts.append(capsys.readouterr().out)
    assert main(["generate", "--batch", str(tmp_path / "prompts.txt"), checkpoint, "--max-tokens", "3"]) == 0
    texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2] != ""


def test_a_run_folder_is_as_good_as_its_checkpoint(checkpoint, capsys):
    texts = []
    for folder in checkpoint, os.path.dirname(checkpoint):
        assert generate(folder, "Who") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_prompts_may_follow_an_option(checkpoint, capsys):
    assert main(["generate", checkpoint, "Who", "--max-tokens", "3", "What"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == [0, 1]


def test_a_folder_is_no_batch(checkpoint, capsys, tmp_path):
    (tmp_path / "a.txt").write_text("Who\n")
    assert main(["generate", checkpoint, "--batch", str(tmp_path)]) == 2
    assert "--batch must name a file with one prompt per line" in capsys.readouterr().err


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


def json_lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


PROMPTS = ["Is it", "", "Who are you", "What is red"]


def test_several_prompts_give_json_lines(checkpoint, capsys):
    assert generate(checkpoint, *PROMPTS, "--slots", "2") == 0
    found = json_lines(capsys)
    assert [line["prompt"] for line in found] == [0, 1, 2, 3]
    model, tokenizer = learned()
    for prompt, line in zip(PROMPTS, found, strict=True):
        assert line["text"] == fastllm.generate(model, tokenizer, prompt)
        assert tokenizer.decode([*tokenizer.encode(prompt), *line["tokens"]]) == prompt + line["text"]
        assert line["prompt_tokens"] == max(tokenizer.encode(prompt).size, 1)
        assert set(line) == {"prompt", "text", "tokens", "finish_reason", "prompt_tokens"}
    assert found[0]["finish_reason"] == "end"


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("source", ["file", "-"])
def test_a_batch_is_a_prompt_in_each_line(checkpoint, capsys, monkeypatch, tmp_path, source, ending):
    text = "\n".join(PROMPTS) + ending
    if source == "-":
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
    else:
        source = str(tmp_path / "prompts.txt")
        (tmp_path / "prompts.txt").write_text(text, encoding="utf-8")
    assert generate(checkpoint, "--batch", source) == 0
    batch = json_lines(capsys)
    assert generate(checkpoint, *PROMPTS) == 0
    assert batch == json_lines(capsys)


@pytest.mark.parametrize("words", [["-"], ["--batch", "-"]])
def test_a_mark_before_standard_input_is_no_part_of_it(checkpoint, capsys, monkeypatch, words):
    """As it is none of a file."""
    found = []
    for text in ("Is it", "\ufeffIs it"):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert generate(checkpoint, *words) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top-k", "3", "--min-p", "0.1"], "fastllm: note: --top-k and --min-p: without effect at temperature 0"),
        (["--top-k", "none"], ""),
        (["--top-k", "3", "--beams", "2"], "fastllm: note: --top-k: without effect with beams; leave --beams out"),
        (["--early-stopping", "true"], "fastllm: note: --early-stopping: without effect with one beam; add --beams 4"),
        (["--top-k", "3", "--temperature", "1"], ""),
        (["--beams", "2", "--length-penalty", "0.5"], ""),
        (["--speculate", "4", "--beams", "2"], "fastllm: note: --speculate: without effect with beams; leave --beams"),
        (["--speculate", "4", "--temperature", "1"], "fastllm: note: --speculate: without effect above temperature 0"),
        (["--speculate", "4"], ""),
    ],
)
def test_options_that_do_nothing_are_noted(checkpoint, capsys, words, said):
    assert generate(checkpoint, "Is it", *words) == 0
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert len(err.splitlines()) == bool(said)


def test_no_standard_input(checkpoint, capsys, monkeypatch):
    """As where a daemon starts it."""
    monkeypatch.setattr("sys.stdin", None)
    assert generate(checkpoint, "-") == 0
    assert capsys.readouterr().out == fastllm.generate(*learned(), "") + "\n"


def test_no_limit_and_no_fixed_seed(checkpoint, capsys):
    assert generate(checkpoint, "Is it", "--max-tokens", "None", "--top-k", "none", "--seed", "NONE") == 0
    assert capsys.readouterr().out == fastllm.generate(*learned(), "Is it") + "\n"
    with pytest.raises(SystemExit):
        generate(checkpoint, "Is it", "--seed", "some")
    assert "invalid int value: 'some'" in capsys.readouterr().err


def test_lines_that_windows_ends_and_separators_within_lines(checkpoint, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffIs it\r\nWho\u2028are\x0cyou\r\n".encode())
    assert generate(checkpoint, "--batch", str(tmp_path / "prompts.txt")) == 0
    model, tokenizer = learned()
    expected = [fastllm.generate(model, tokenizer, prompt) for prompt in ("Is it", "Who\u2028are\x0cyou")]
    assert [line["text"] for line in json_lines(capsys)] == expected


def test_json_of_one_prompt(checkpoint, capsys):
    assert generate(checkpoint, "Is it", "--json", "--stop", "near") == 0
    [line] = json_lines(capsys)
    assert line["text"] == " is "
    assert line["finish_reason"] == "stop"
    assert generate(checkpoint, "Is it", "--json", "--max-tokens", "2") == 0
    assert json_lines(capsys)[0]["finish_reason"] == "length"


def test_several_samples_and_hypotheses(checkpoint, capsys):
    options = {"temperature": 1.5, "seed": 2, "n": 3}
    assert generate(checkpoint, "Is it", "Who", "--n", "3", "--temperature", "1.5", "--seed", "2") == 0
    found = json_lines(capsys)
    assert [line["prompt"] for line in found] == [0, 0, 0, 1, 1, 1]
    expected = fastllm.generate_batch(*learned(), ["Is it", "Who"], **options)
    assert [line["text"] for line in found] == [completion.text for completion in expected]
    assert "score" not in found[0]
    assert generate(checkpoint, "Is it", "--n", "2", "--beams", "3") == 0
    best = fastllm.beam_search(*learned(), "Is it", beams=3)[:2]
    assert [(line["text"], line["score"]) for line in json_lines(capsys)] == best


def test_log_probabilities(checkpoint, capsys):
    assert generate(checkpoint, "Is it", "--logprobs", "2", "--max-tokens", "3") == 0
    [line] = json_lines(capsys)
    model, tokenizer = learned()
    text = tokenizer.encode("Is it").tolist()
    assert [entry["token"] for entry in line["logprobs"]] == line["tokens"]
    for entry in line["logprobs"]:
        logits = model.forward(np.array(text))[-1].astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum())
        assert entry["logprob"] == pytest.approx(logs[entry["token"]], abs=1e-5)
        assert entry["text"].strip() == tokenizer.tokens[entry["token"]]
        assert [top["token"] for top in entry["top"]] == np.argsort(-logs)[:2].tolist()
        text.append(entry["token"])
    assert "".join(entry["text"] for entry in line["logprobs"]) == line["text"]


def test_log_probabilities_come_with_text_whatever_a_vocabulary_writes(tmp_path, capsys, ours):
    config = fastllm.preset("nano", vocab_size=ours.vocab_size, width=8, hidden=12, layers=1, heads=2, context=16)
    fastllm.save(tmp_path / "model", fastllm.Model(config, backend="numpy"), ours)
    assert generate(str(tmp_path / "model"), "a", "--logprobs", str(ours.vocab_size), "--max-tokens", "1") == 0
    [line] = json_lines(capsys)
    texts = {top["token"]: top["text"] for top in line["logprobs"][0]["top"]}
    [word] = ours.encode(" the")
    part, *_ = ours.encode("\u2603")  # bytes, as the corpus doesn't hold it
    assert (texts[word], texts[part], texts[ours.end_id]) == (" the", "\ufffd", ours.tokens[ours.end_id])


def test_lines_come_as_soon_as_their_texts_are_complete(checkpoint, monkeypatch):
    shown = []

    class Output(io.StringIO):
        def flush(self):
            shown.append(len(steps))

    def watched(*arguments):
        steps.append(1)
        return decode(*arguments)

    steps = []
    decode = fastllm.Model.decode
    monkeypatch.setattr(fastllm.Model, "decode", watched)
    monkeypatch.setattr("sys.stdout", Output())
    assert generate(checkpoint, *PROMPTS, "--slots", "1", "--max-tokens", "3") == 0
    assert len(shown) == len(PROMPTS)
    assert shown[0] <= 2 < shown[-1] == len(steps)


def test_what_is_not_asked_for_is_the_models_own(checkpoint, capsys, monkeypatch):
    model, tokenizer = learned()
    own = {"temperature": 4.0, "seed": 4, "max_tokens": 6}
    expected = fastllm.generate(model, tokenizer, "Is it", **own)
    load = fastllm.load

    def with_options(*arguments):
        loaded, tokenizer = load(*arguments)
        loaded.generation_options = own
        return loaded, tokenizer

    monkeypatch.setattr("fastllm.checkpoint.load", with_options)
    assert generate(checkpoint, "Is it") == 0
    assert capsys.readouterr().out == expected + "\n"
    assert generate(checkpoint, "Is it", "--temperature", "0") == 0
    greedy = capsys.readouterr().out
    assert greedy != expected + "\n"
    assert generate(checkpoint, "Is it", "--temperature", "0", "--max-tokens", "1") == 0
    assert greedy.startswith(capsys.readouterr().out.rstrip())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there must be a text file"),
        (b"", "needs one prompt per line; got nothing"),
        (b"ab\xff", "must be UTF-8 text; got byte 0xff at position 2"),
        (b"Is it\n" + b"far " * 40, "prompts[1]: a prompt must fit into the model's context of 32 tokens; got 40"),
    ],
)
def test_a_batch_that_cannot_be_read_is_a_failure(checkpoint, capsys, tmp_path, content, message):
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    assert generate(checkpoint, "--batch", str(tmp_path / "prompts.txt")) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_samples_of_temperature_0_are_wrong_use(checkpoint, capsys):
    assert generate(checkpoint, "Is it", "--n", "2") == 2
    assert "n above 1 needs a temperature above 0" in capsys.readouterr().err


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
        (["--beams", "0"], "beams must be from 1 to 1024"),
        (["--beams", "2", "--temperature", "1"], "beams above 1 need temperature=0"),
        (["--length-penalty", "inf"], "length_penalty must be between"),
        (["--min-p", "2"], "min_p must be from 0 to 1"),
        (["--typical-p", "0"], "typical_p must be above 0"),
        (["--repetition-penalty", "0"], "repetition_penalty must be from 1e-30 to 1e+30; got 0.0"),
        (["--presence-penalty", "nan"], "presence_penalty must be from -1e+30 to 1e+30; got nan"),
        (["--frequency-penalty", "inf"], "frequency_penalty must be from -1e+30 to 1e+30; got inf"),
        (["--n", "0"], "n must be from 1 to 65536"),
        (["--n", "3", "--beams", "2"], "n must be at most beams"),
        (["--logprobs", "-1"], "logprobs must not be negative"),
        (["--speculate", "32"], "speculate must be from 0 to 31"),
        (["--slots", "33"], "--slots must be from 1 to 32; got 33"),
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
    "arguments",
    [
        [],
        ["model"],
        ["model", "-", "-"],
        ["model", "text", "--batch", "file"],
        ["model", "text", "--top-k", "many"],
        ["model", "text", "--early-stopping", "often"],
        ["model", "text", "--backend", "fast"],
    ],
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
        (lambda folder: folder, "must be a model's folder, with a config.json; got none"),
        (lambda folder: damaged(folder / "cut"), "must be of the size that its type and shape say"),
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
