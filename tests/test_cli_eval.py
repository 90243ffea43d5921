"""fastllm eval, and answers counted without generating them."""

import json

import numpy as np
import pytest
from tiny_checkpoint import CONTEXT, DIALOGUES, dialogue, learned, write_checkpoint

import fastllm
from fastllm.cli import main
from fastllm.datasets import make_examples
from fastllm.training.answers import exact_answers
from fastllm.training.source import resolve


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("eval") / "checkpoint"))


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def evaluate(capsys, *arguments):
    assert main(["eval", *arguments, "--backend", "numpy"]) == 0
    return capsys.readouterr().out


def is_given(model, tokenizer, record):
    """Whether a chat's greedy answer is the dialogue's last."""
    *earlier, question, answer = (message["content"] for message in record["messages"])
    chat = fastllm.Chat(model, tokenizer)
    chat.turns = list(zip(earlier[::2], earlier[1::2], strict=True))
    return "".join(chat.ask(question)) == answer


def long_dialogues():
    """As long as the context and longer, with endings that were learned and endings that were not."""
    turns = ["What is red?", "A rose is red.", "And blue?", "The sea is blue."]
    for rounds in range(4):
        for ending in DIALOGUES[:2]:
            for answer in ending["messages"][1]["content"], "No, it is near.", "A rose":
                yield dialogue(*turns * rounds, ending["messages"][0]["content"], answer)


@pytest.mark.parametrize("steps", [5, 20, 30, 150])
def test_exact_answers_are_those_of_greedy_generation(steps):
    model, tokenizer = learned(steps)
    records = [*DIALOGUES, *long_dialogues()]
    given = [is_given(model, tokenizer, record) for record in records]
    assert [bool(exact_answers(model, tokenizer, [record])[0]) for record in records] == given
    assert exact_answers(model, tokenizer, records) == (sum(given), len(records))
    if steps == 20:
        assert 0 < sum(given[: len(DIALOGUES)]) < len(DIALOGUES)  # so that both answers are seen
    if steps == 150:
        assert all(given[: len(DIALOGUES)])


def test_an_answer_must_be_all_there():
    model, tokenizer = learned()
    for answer, right in ("I am a small model.", 1), ("I am a small", 0), ("I am a small model. Yes.", 0):
        assert exact_answers(model, tokenizer, [dialogue("Who are you?", answer)]) == (right, 1)


def test_an_unknown_word_is_never_the_answer():
    model, tokenizer = learned()

    class Oracle:
        config = model.config
        generation_options = {}  # noqa: RUF012

        def score(self, tokens, targets):
            return fastllm.Score(0.0, int((targets >= 0).sum()), int((targets >= 0).sum()))

    records = [dialogue("Is it far?", "Zounds, very far."), dialogue("Is it far?", "The sea is blue.")]
    assert exact_answers(Oracle(), tokenizer, records) == (1, 2)


@pytest.mark.parametrize(
    ("question", "answer"), [("far " * CONTEXT, "Yes."), ("", "Yes."), ("Is it far?", "far " * CONTEXT)]
)
def test_what_does_not_fit_counts_as_wrong(question, answer):
    assert exact_answers(*learned(), [dialogue(question, answer), DIALOGUES[0]]) == (1, 2)


def test_texts_are_no_answers():
    assert exact_answers(*learned(), [{"text": "The sea is blue."}]) == (0, 0)


def test_the_figures_of_dialogues(checkpoint, tmp_path, capsys):
    path = lines(tmp_path / "some.jsonl", [*DIALOGUES, dialogue("Who are you?", "A rose.")])
    figures = json.loads(evaluate(capsys, checkpoint, path, "--json"))
    model, tokenizer = learned()
    examples = make_examples([*DIALOGUES, dialogue("Who are you?", "A rose.")], tokenizer, CONTEXT)
    losses = []
    for example in examples:  # from the logits
        logits = model.forward(example.tokens).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        wanted = example.targets >= 0
        losses.extend(-logits[wanted, example.targets[wanted]])
    assert figures["targets"] == len(losses)
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert 0.8 < figures["accuracy"] < 1
    assert (figures["exact_answers"], figures["answers"]) == (4, 5)
    assert json.loads(evaluate(capsys, checkpoint, path, "--json", "--context", "4")) == figures  # of texts alone


def test_shipped_data_have_the_names_that_jobs_use(checkpoint, capsys):
    path = str(resolve("fastllm:en/validation.jsonl"))
    assert evaluate(capsys, checkpoint, "fastllm:en/validation.jsonl") == evaluate(capsys, checkpoint, path)


def test_a_person_reads_a_table(checkpoint, tmp_path, capsys):
    path = lines(tmp_path / "some.jsonl", DIALOGUES)
    table = dict(line.split(maxsplit=1) for line in evaluate(capsys, checkpoint, path).splitlines())
    assert list(table) == ["tokens", "loss", "perplexity", "accuracy", "left", "exact"]
    assert table["left"] == "out    1 of the answers: dialogues are longer than the context"
    assert table["accuracy"] == "100.0%"
    assert table["exact"] == "4 of 4 answers, 100.0%"


@pytest.mark.parametrize("name", ["text.txt", "texts.jsonl"])
def test_texts_have_no_answers(checkpoint, tmp_path, capsys, name):
    path = tmp_path / name
    text = "The sea is blue. A rose is red. " * 10
    path.write_text(json.dumps({"text": text}) if path.suffix == ".jsonl" else text)
    assert "exact" not in evaluate(capsys, checkpoint, str(path))
    figures = json.loads(evaluate(capsys, checkpoint, str(path), "--json"))
    assert figures["targets"] > 64
    assert figures["answers"] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt"),
        ("empty.txt", "", "at least two tokens"),
        ("short.txt", "sea", "at least two tokens; got 1"),
        ("empty.jsonl", "", "at least one JSON object a line; got none"),
        ("wrong.jsonl", '{"text": "The sea"}\n{"txt": "is blue"}', "wrong.jsonl, line 2"),
        ("latin1.txt", "ä".encode("latin-1"), "must be UTF-8 text"),
    ],
)
def test_a_file_that_is_no_good_is_a_failure(checkpoint, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["eval", checkpoint, str(tmp_path / name), "--backend", "numpy"]) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_a_missing_model_is_a_failure(tmp_path, capsys):
    assert main(["eval", str(tmp_path / "nowhere"), "some.txt"]) == 1
    assert "got nothing; check the name" in capsys.readouterr().err
