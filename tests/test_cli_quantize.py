"""fastllm quantize: the file, what it says of sizes and kinds, and the perplexity before and after."""

import json
import math
import os
import runpy
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm import cli
from fastllm.formats import open_model, write_gguf
from fastllm.formats.gguf_file import read_gguf_file
from fastllm.quantize import dequantize
from fastllm.tokenizers import ByteTokenizer

TEXT = "The sun is a star. The moon is not, and it's far from the sun. " * 40
BYTES = len(TEXT.encode())


def quantize(*words):
    """Its exit status."""
    return cli.main(["quantize", *map(str, words)])


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def save(folder, **options):
    """A checkpoint of a random model, of GGUF's architecture "llama"; width and hidden are multiples of 32."""
    config = fastllm.preset(
        "nano", vocab_size=ByteTokenizer().vocab_size, width=64, hidden=96, layers=2, heads=2, context=32, **options
    )
    model = fastllm.Model(config, seed=2, backend="numpy")
    noise = np.random.default_rng(0).standard_normal(model.parameters.flat.shape, dtype=np.float32)
    model.parameters.flat += np.float32(0.1) * noise
    fastllm.save(folder, model, ByteTokenizer())
    return model


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_the_file_and_what_is_said_of_it(kind, tmp_path, capsys):
    model = save(tmp_path / "ours", tied_head=False)
    path = tmp_path / "model.gguf"
    assert quantize(tmp_path / "ours", path, "--type", kind.lower(), "--no-tokenizer") == 0
    lines = capsys.readouterr().out.splitlines()
    tensors = read_gguf_file(path).tensors
    kinds = {tensor.kind.name for tensor in tensors.values()}
    assert kinds == {kind, "F32", *(["Q8_0"] if kind != "Q8_0" else [])}
    size = sum(tensor.data.nbytes for tensor in tensors.values())
    parameters, file_size = model.parameters.flat.nbytes, os.path.getsize(path)
    assert lines[0].split() == ["before", f"{parameters / 1e3:.1f}", "kB,", "F32"]
    assert lines[1].split()[:5] == ["after", f"{size / 1e3:.1f}", "kB,", f"{kind}:", f"{size / parameters:.1%};"]
    assert lines[1].endswith(f"the file {file_size / 1e3:.1f} kB")
    kept = [line.split(maxsplit=1) for line in lines[2:]]
    head = [["Q8_0", "output.weight"]] if kind != "Q8_0" else []
    assert sorted(kept) == sorted([*head, ["F32", "norms and biases"]])
    # The loss is at most half a step, and the rounding of the scale to float16: 127 steps x 2^-11.
    steps = {"Q8_0": 254, "Q4_0": 15, "Q4_1": 15}[kind]
    name = "blocks.1.feed_forward.down.weight"
    blocks = model.parameters[name].reshape(-1, 32)
    error = np.abs(dequantize(open_model(path).weights[name]).reshape(-1, 32) - blocks)
    reach = 2 * np.abs(blocks).max(axis=1) if kind != "Q4_1" else np.ptp(blocks, axis=1)
    half_steps = 1.0 if kind == "Q4_0" else 0.5  # its 16 steps reach farther on one side than on the other
    assert (error.max(axis=1) <= half_steps * 1.13 * reach / steps).all()


def test_rows_that_are_no_multiple_of_a_block_are_said(tmp_path, capsys):
    config = fastllm.preset("nano", vocab_size=40, width=64, hidden=72, layers=3, heads=2, context=16)
    model = fastllm.Model(config, backend="numpy")
    write_gguf(tmp_path / "given.gguf", config, model.parameters, "F16")
    assert quantize(tmp_path / "given.gguf", tmp_path / "model.gguf", "--type", "Q8_0", "--no-tokenizer") == 0
    output = capsys.readouterr().out
    assert "before" in output
    assert "F16" in output.splitlines()[0]
    kept = dict(line.split(maxsplit=1) for line in output.splitlines()[2:])
    assert kept["F16"] == ", ".join(f"blk.{i}.ffn_down.weight" for i in range(3))


def perplexity(model, window, count):
    """By definition: of bytes 1 to `count`, in windows."""
    ids = ByteTokenizer().encode(TEXT)[: count + 1]
    total = 0.0
    for begin in range(0, count, window):
        piece = ids[begin : min(begin + window, count) + 1]
        logits = model.forward(piece[:-1]).astype(np.float64)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), piece[1:]]
        total += losses.sum()
    return math.exp(total / count)


@pytest.mark.parametrize(("tokens", "count"), [(70, 70), (1, 1), (10**6, BYTES - 1)])
def test_perplexity_before_and_after(tokens, count, tmp_path, text, capsys):
    model = save(tmp_path / "ours")
    path, figures = tmp_path / "model.gguf", tmp_path / "figures.json"
    words = ["--type", "q4_0", "--no-tokenizer", "--text", text, "--tokens", tokens, "--json", figures]
    assert quantize(tmp_path / "ours", path, *words) == 0
    written = json.loads(figures.read_text())
    window = min(32, count)
    assert (written["perplexity"]["tokens"], written["perplexity"]["window"]) == (count, window)
    if count < 100:  # the rest is many forward passes of the twins
        assert written["perplexity"]["before"] == pytest.approx(perplexity(model, window, count), rel=1e-4)
        opened = open_model(path)
        after = fastllm.Model(opened.config, backend="numpy", weights=opened.weights)
        assert written["perplexity"]["after"] == pytest.approx(perplexity(after, window, count), rel=1e-4)
    assert written["target"]["kind"] == "Q4_0"
    assert written["target"]["bytes"] == sum(tensor.data.nbytes for tensor in read_gguf_file(path).tensors.values())
    assert written["target"]["file_bytes"] == os.path.getsize(path)
    assert written["source"]["bytes"] == model.parameters.flat.nbytes
    said = capsys.readouterr().out
    assert f"perplexity of {count:,} tokens of {text} in windows of {window}: " in said
    ratio = written["perplexity"]["after"] / written["perplexity"]["before"] - 1
    assert f"{ratio:+.2%}" in said


def test_the_script_that_compares_kinds(tmp_path, text, capsys):
    save(tmp_path / "ours")
    main = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "quantization_loss.py"))["main"]
    path = tmp_path / "loss.json"
    words = [str(tmp_path / "ours"), str(text), "--tokens", "64", "--kinds", "q8_0", "q4_0", "--json", str(path)]
    assert main(words) == 0
    written = json.loads(path.read_text())
    assert [row["kind"] for row in written["rows"]] == ["f32", "q8_0", "q4_0"]
    first, eight, four = written["rows"]
    assert (first["change"], first["size"]) == (0, 1)
    assert abs(eight["change"]) < abs(four["change"])
    assert 1 > eight["size"] > four["size"]
    assert (written["tokens"], written["window"]) == (64, 32)
    assert f"{four['change']:+.2%}" in capsys.readouterr().out


def test_wrong_use(tmp_path, text, capsys):
    save(tmp_path / "ours")
    for words, said in (
        (["model", "--type", "q8_0"], "add .gguf to its name"),
        (["model.gguf", "--type", "q8_0", "--text", text, "--tokens", "0"], "--tokens must be 1 or more"),
        (["model.gguf", "--type", "q8_0", "--tokens", "10"], "--tokens goes with --text"),
    ):
        assert quantize(tmp_path / "ours", tmp_path / words[0], *words[1:]) == 2
        assert said in capsys.readouterr().err
    for words in ([], ["--type", "f16"], ["--type", "q5_0"]):
        with pytest.raises(SystemExit) as end:
            quantize(tmp_path / "ours", tmp_path / "model.gguf", *words)
        assert end.value.code == 2
    (tmp_path / "short.txt").write_text("a")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "chat.jsonl").write_text('{"text": "a b c"}')
    options = ["--type", "q8_0", "--no-tokenizer", "--text"]
    for name, said in (
        ("none.txt", "there must be a text"),
        ("short.txt", "two tokens"),
        ("latin.txt", "UTF-8"),
        ("chat.jsonl", "--text must be a plain text file; got"),
    ):
        assert quantize(tmp_path / "ours", tmp_path / "model.gguf", *options, tmp_path / name) == 1
        assert said in capsys.readouterr().err
    assert quantize(tmp_path / "ours", tmp_path / "model.gguf", "--type", "q8_0") == 1
    assert "--no-tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "model.gguf").exists()


def test_a_second_run(tmp_path, capsys):
    save(tmp_path / "ours")
    path = tmp_path / "model.gguf"
    words = [tmp_path / "ours", path, "--type", "q4_1", "--no-tokenizer"]
    assert quantize(*words) == 0
    before = path.read_bytes()
    assert quantize(*words) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert quantize(*words, "--force") == 0
    assert path.read_bytes() == before
    # What is quantised already keeps its bytes where the type is the same.
    assert quantize(path, tmp_path / "again.gguf", "--type", "q4_1", "--no-tokenizer") == 0
    one, other = (read_gguf_file(tmp_path / f"{name}.gguf").tensors for name in ("model", "again"))
    assert all(tensor.data.tobytes() == other[name].data.tobytes() for name, tensor in one.items())
    assert quantize(path, path, "--type", "q4_0", "--no-tokenizer", "--force") == 2
    assert path.read_bytes() == before


def test_json_that_cannot_be_written_is_found_out_before_the_work(tmp_path, capsys, text):
    save(tmp_path / "ours")
    for name, said in (
        ("nowhere/x.json", "a file in a folder that exists"), ("ours", "a file in a folder that exists"),
        ("model.gguf", "a file of its own"), ("ours/../model.gguf", "a file of its own"),
        ("ours/config.json", "a file of its own"), ("text.txt", "a file of its own"),
    ):  # fmt: skip
        words = ["--type", "q8_0", "--no-tokenizer", "--json", tmp_path / name]
        words += ["--text", text]
        assert quantize(tmp_path / "ours", tmp_path / "model.gguf", *words) == 2
        assert f"--json must name {said}" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["ours", "text.txt"]
