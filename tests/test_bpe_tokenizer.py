"""Byte-level BPE learnt from texts: the pairs of a reference, any text and back, files, jobs, bad input."""

import doctest
import os
import string
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import HARD_TEXTS, TEXTS
from training_jobs import Recorder, make_job

import fastllm
from fastllm.cli import main
from fastllm.dialogue import end_ids, prompt_tokens, question_tokens
from fastllm.tokenizers import (
    BPETokenizer,
    HuggingFaceTokenizer,
    base,
    bpe,
    load_tokenizer,
    tokenizer_from_gguf,
    tokenizer_to_gguf,
)
from fastllm.tokenizers.huggingface_decoder import byte_characters
from fastllm.training.curves import read_metrics
from fastllm.training.job import Job

pytest.importorskip("tokenizers")

CONTROLS = ["<end>", "<user>", "<assistant>"]
WORDS = ["low lower lowest, new newer newest; wide wider widest.", "Über café, 你好 👍🏽 <user> <end>\n\n  x = 12345"]


def learnt(**limits):
    return BPETokenizer.build(WORDS * 2, **limits)


def test_example_in_docstring():
    result = doctest.testmod(bpe)
    assert (result.attempted, result.failed) == (2, 0)


def test_what_it_learns():
    tokenizer = BPETokenizer.build(["aaab aaab b"], max_size=262)
    assert tokenizer.tokens[:3] == CONTROLS
    assert tokenizer.tokens[3:259] == sorted(byte_characters())
    assert tokenizer.tokens[259:] == ["aa", "ab", "aaab"]  # of pairs as frequent, that of the smaller ids comes first


def test_the_reference_learns_the_same(shared_data):
    """The same merges, except where the order of equally frequent pairs makes a difference."""
    folder = shared_data / "bpe-training"
    merges = (folder / "cs336-train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = BPETokenizer.build([(folder / "corpus.en").read_text(encoding="utf-8")], 259 + len(merges))
    theirs, ours = ["".join(merge.split(" ")) for merge in merges], tokenizer.tokens[259:]
    assert len(set(theirs) & set(ours)) >= 0.98 * len(theirs)


@given(text=TEXTS)
def test_any_text_and_back(text):
    tokenizer = learnt()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert not tokenizer.control_ids & set(ids.tolist())


@given(texts=st.lists(TEXTS, min_size=1).filter(lambda texts: any(texts)), size=st.integers(259, 300))
def test_the_same_texts_give_the_same_tokens(texts, size):
    tokenizer = BPETokenizer.build(texts, size)
    assert tokenizer.vocab_size <= size
    assert BPETokenizer.build(iter(texts), size).document == tokenizer.document
    assert BPETokenizer.build(texts, 400).tokens[: tokenizer.vocab_size] == tokenizer.tokens


@pytest.mark.parametrize(("length", "longest"), [(bpe.LONGEST, bpe.LONGEST), (bpe.LONGEST + 1, 16)])
def test_a_token_is_as_long_as_is_said(length, longest):
    """Pairs as frequent as each other are joined in their order, so that tokens double: 16 and 15 become one."""
    tokenizer = BPETokenizer.build([string.ascii_letters[:length] + "\n"] * 2)
    assert max(map(len, tokenizer.tokens[3:])) == longest


def test_limits():
    assert learnt(max_size=259).vocab_size == 259
    assert learnt(max_size=259).encode("aé").tolist() == [learnt().id_of(byte) for byte in ("a", "Ã", "©")]
    assert learnt(max_size=270).vocab_size == 270
    assert learnt(minimum_count=1000).vocab_size == 259
    once, twice, often = (BPETokenizer.build(WORDS, minimum_count=count) for count in (1, 2, 4))
    assert 259 < often.vocab_size < twice.vocab_size < once.vocab_size
    assert BPETokenizer.build(WORDS).tokens == twice.tokens
    assert BPETokenizer.build([f"{n:x} {n:o}" for n in range(9000)] * 2).vocab_size == 4096


def test_pieces_cut_no_word(monkeypatch):
    text = "\n".join(" ".join(WORDS[0] for _ in range(5)) for _ in range(5))
    whole = BPETokenizer.build([text])
    monkeypatch.setattr(base, "PIECE", 60)
    read = []
    monkeypatch.setattr(bpe, "_without_long_runs", lambda piece: read.append(piece) or [piece])
    assert BPETokenizer.build([text]).tokens == whole.tokens
    assert len(read) > 10
    assert "".join(read) == text


@pytest.mark.parametrize("unit", ["a", "你", "👍🏽👨‍👩‍👧‍👦", " ", "ab你c "])
def test_long_runs_make_no_long_tokens(unit):
    text = unit * 100_000  # as one word, it would take minutes
    tokenizer = BPETokenizer.build([text])
    assert max(len(token) for token in tokenizer.tokens[3:]) <= bpe.LONGEST
    assert tokenizer.decode(tokenizer.encode(text[:5000])) == text[:5000]
    assert "".join(bpe._without_long_runs(text)) == text


def test_texts_of_control_tokens_are_texts():
    tokenizer = BPETokenizer.build(["<end><user>"] * 9)
    ids = tokenizer.encode("<end><user>").tolist()
    assert tokenizer.decode(ids) == "<end><user>"
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.encode_template("<end>").tolist() == [tokenizer.end_id]


def test_a_dialogue_is_laid_out_as_ours_are():
    pytest.importorskip("jinja2")
    tokenizer = learnt()
    messages = [
        {"role": "user", "content": "low <end>"}, {"role": "assistant", "content": "new"},
        {"role": "user", "content": "wide"},
    ]  # fmt: skip
    assert prompt_tokens(tokenizer, messages) == [
        *(1, *tokenizer.encode("low <end>"), 2, *tokenizer.encode("new"), 0, 1, *tokenizer.encode("wide"), 2)
    ]
    assert end_ids(tokenizer) == {0, 1}
    for wrong in ([{"role": "system", "content": "low"}, *messages], [messages[0]] * 2, messages[1:]):
        with pytest.raises(fastllm.DataError, match="must take turns"):
            prompt_tokens(tokenizer, wrong)


# files


@pytest.mark.parametrize("limits", [{}, {"max_size": 259}], ids=["pairs", "bytes"])
def test_files(tmp_path, limits):
    tokenizer = learnt(**limits)
    tokenizer.save_into(tmp_path)
    loaded = load_tokenizer(tmp_path)
    tokenizer.save(tmp_path / "alone.json")
    alone = load_tokenizer(tmp_path / "alone.json")
    assert end_ids(alone) == {0, 1}
    assert question_tokens(alone, "low") == question_tokens(tokenizer, "low")
    written = tokenizer_from_gguf(tokenizer_to_gguf(tokenizer))
    assert loaded.end_ids == tokenizer.end_ids == {0, 1}
    for other in (loaded, written):
        assert isinstance(other, HuggingFaceTokenizer)
        assert (other.tokens, other.end_id, other.chat_template) == (tokenizer.tokens, 0, tokenizer.chat_template)
        for text in HARD_TEXTS:
            assert other.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_transformers_opens_the_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = learnt()
    tokenizer.save_into(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "low"}]
    assert theirs.apply_chat_template(messages, tokenize=True, return_dict=False) == prompt_tokens(tokenizer, messages)
    for text in HARD_TEXTS:
        assert theirs(text).input_ids == tokenizer.encode_template(text).tolist()
        assert theirs.decode(tokenizer.encode(text)) == text


# jobs


def bpe_job(folder, **changes):
    return make_job(folder, tokenizer={"type": "bpe", "max_size": 300, **changes})


def test_a_job(tmp_path):
    pytest.importorskip("jinja2")
    config = bpe_job(tmp_path)
    job = Job.start(tmp_path / "run", config)
    assert 259 < job.tokenizer.vocab_size <= 300
    assert job.model.config.vocab_size == job.tokenizer.vocab_size
    job.train(Recorder())
    model, tokenizer = fastllm.load(tmp_path / "run")
    assert tokenizer.tokens == job.tokenizer.tokens
    assert isinstance("".join(fastllm.Chat(model, tokenizer, max_tokens=3).ask("Who?")), str)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["phase"] == "facts"]
    assert losses[-1] < losses[0]


def test_a_job_with_the_tokenizer_of_another(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "model.gguf"
    Job.start(folder, bpe_job(tmp_path)).train(Recorder())
    assert main(["convert", str(folder), str(file)]) == 0
    tokenizers = [Job.start(tmp_path / place.stem / "new", make_job(tmp_path, tokenizer={"path": str(place)})).tokenizer
                  for place in (folder, file)]  # fmt: skip
    assert tokenizers[0].tokens == tokenizers[1].tokens == load_tokenizer(folder / "checkpoint").tokens


def test_a_job_that_has_no_checkpoint_yet_learns_the_same_again(tmp_path):
    first = Job.start(tmp_path / "run", bpe_job(tmp_path))
    again = Job.start(tmp_path / "again", bpe_job(tmp_path))
    assert first.tokenizer.tokens == again.tokenizer.tokens
    resumed = Job.resume(tmp_path / "run")
    assert resumed.tokenizer.tokens == first.tokenizer.tokens


# bad input


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        BPETokenizer.build("text")
    with pytest.raises(TypeError, match="text must be a str; got NoneType"):
        BPETokenizer.build(["a", None])
    with pytest.raises(fastllm.DataError, match="lone surrogate U\\+D83D at position 0"):
        BPETokenizer.build(["a", "\ud83d"])
    for texts in ([], [""], iter(())):
        with pytest.raises(fastllm.DataError, match="at least one character; got none"):
            BPETokenizer.build(texts)
    for size in (258, 10**9, 10**30):
        with pytest.raises(ValueError, match=rf"max_size must be at least 259.*at most 1,048,576; got {size}; "):
            learnt(max_size=size)
    assert learnt(minimum_count=10**30).vocab_size == 259
    for wrong in ({"max_size": 300.5}, {"max_size": "300"}, {"minimum_count": 1.5}, {"minimum_count": None}):
        with pytest.raises(TypeError, match="must be a whole number; got"):
            learnt(**wrong)
    with pytest.raises(ValueError, match="minimum_count must be 1 or more; got 0"):
        learnt(minimum_count=0)


def test_an_interrupt_while_texts_are_read_comes_through():
    def texts():
        yield "some text"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BPETokenizer.build(texts())


@pytest.mark.skipif(os.name != "posix", reason="the signal is sent as POSIX has it")
def test_an_interrupt_while_pairs_are_learnt_comes_through():
    """In a process of its own, which ends while they are still learnt."""
    code = """
import os, signal, threading
import numpy as np
from fastllm.tokenizers import BPETokenizer
letters = np.random.default_rng(0).integers(97, 107, (400_000, 9), np.uint8)
text = " ".join(row.tobytes().decode() for row in letters)
before = threading.active_count()
def texts():
    yield text
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    BPETokenizer.build(texts(), 200_000)
except KeyboardInterrupt:
    print("learning" if threading.active_count() > before else "learnt")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("learning\n", "", 0)


def test_without_the_package():
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "import fastllm\n"
        "try: fastllm.BPETokenizer.build(['text'])\n"
        "except fastllm.FastllmError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.startswith("a BPE tokenizer needs the package tokenizers; got ")
    assert 'pip install "fastllm-numba[hf]"' in done.stdout
