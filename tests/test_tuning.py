"""Jobs that tune a model that is there: all of it or low-rank maps beside it, stopped, resumed, opened and merged."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from tiny_checkpoint import DIALOGUES as KNOWN
from tiny_checkpoint import dialogue, learned, write_checkpoint
from training_jobs import DIALOGUES, TEXTS, Recorder, make_job, stop_at, write_lines

import fastllm
from fastllm import cli
from fastllm.adapters import read_adapter
from fastllm.checkpoint import find_checkpoint, load_progress, read_arrays
from fastllm.datasets import Examples, make_examples
from fastllm.dialogue import prompt_tokens, training_sequences
from fastllm.errors import ConfigError, DataError, FormatError
from fastllm.lora import LoRAConfig, additions_of
from fastllm.records import read_records, record_texts
from fastllm.training import evaluate
from fastllm.training.answers import exact_answers
from fastllm.training.config import JobConfig
from fastllm.training.job import Interrupted, Job
from fastllm.training.session import describe, prepare

SIZES = {"width": 8, "hidden": 12, "layers": 2, "heads": 2, "context": 16}
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
LORA = {"rank": 3, "alpha": 7.0}
BASES = {
    "llama": lambda size: fastllm.preset("nano", vocab_size=size, **SIZES),
    "gpt2": lambda size: fastllm.ModelConfig(vocab_size=size, **SIZES),
    "without a name": lambda size: fastllm.preset("rustgpt", vocab_size=size, **SIZES),
    "llama2.c": None,  # a published model, whose RoPE is on pairs
}


@pytest.fixture(params=BASES)
def base(request, tmp_path):
    """The path of a model with a tokenizer."""
    if request.param != "llama2.c":
        tokenizer = fastllm.WordTokenizer.build(record_texts(TEXTS + DIALOGUES))
        model = fastllm.Model(BASES[request.param](tokenizer.vocab_size), seed=5, backend="numpy")
        fastllm.save(tmp_path / "base", model, tokenizer)
        return tmp_path / "base"
    data = request.getfixturevalue("shared_data") / "stories260K"
    (tmp_path / "base").mkdir()
    shutil.copy(data / "stories260K.bin", tmp_path / "base" / "model.bin")
    shutil.copy(data / "tok512.bin", tmp_path / "base" / "tokenizer.bin")
    return tmp_path / "base" / "model.bin"


def tuning_job(folder, base, lora=LORA, **changes):
    """8 updates on texts, with accumulation and validation."""
    config = make_job(folder)
    tables = {"lora": lora} if lora else {}
    phase = dataclasses.asdict(config.phases[0])
    phase |= {"validation": phase["data"], "learning_rate": 1e-2, "epochs": 2}
    return JobConfig.from_dict({
        "backend": "numpy", "seed": 3, "checkpoint_seconds": 0, "model": {"path": str(base)}, **tables,
        "phases": [{name: value for name, value in (phase | changes).items() if value is not None}],
    })  # fmt: skip


def finished(folder):
    """Everything that a run writes, except times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["tokens_per_second"]
    contents = {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}
    progress = json.loads(contents.pop("progress.json"))
    del progress["since_last_line"]
    return lines, contents, progress


def contents_of(path):
    files = path.parent.iterdir() if path.is_file() else path.iterdir()
    return {file.name: file.read_bytes() for file in files}


kinds = pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])


@kinds
def test_stopped_and_resumed_is_uninterrupted(tmp_path, base, lora):
    """To the bit, from a fresh checkpoint and from a later one; the model that is tuned stays as it was."""
    before = contents_of(base)
    config = tuning_job(tmp_path, base, lora)
    job = Job.start(tmp_path / "whole", config)
    recorder = Recorder()
    job.train(recorder)
    assert recorder.records[-1]["validation_loss"] < recorder.records[0]["validation_loss"] - 0.005
    for step in (1, 5):
        with pytest.raises(Interrupted):
            Job.start(tmp_path / f"run{step}", config).train(stop_at(None, step))
        assert load_progress(tmp_path / f"run{step}")["step"] == step
        resumed = Job.resume(tmp_path / f"run{step}")
        assert resumed.model.config == job.model.config
        resumed.train(Recorder())
        assert resumed.model.trainable.flat.tobytes() == job.model.trainable.flat.tobytes()
        assert finished(tmp_path / f"run{step}") == finished(tmp_path / "whole")
    assert Job.resume(tmp_path / "whole").is_done
    assert contents_of(base) == before


def test_an_adapter_goes_on_with_the_model_that_it_is_for(tmp_path, base):
    model, tokenizer = fastllm.load(base, backend="numpy")
    model.unfreeze()
    fastllm.save(tmp_path / "mine", model, tokenizer)
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", tuning_job(tmp_path, tmp_path / "mine")).train(stop_at(None, 1))
    before = model.parameters["blocks.0.feed_forward.down.weight"].copy()
    model.parameters["blocks.0.feed_forward.down.weight"][...] *= 0.5
    fastllm.save(tmp_path / "mine", model, tokenizer)
    with (
        pytest.warns(UserWarning, match=r"trained on .*mine, which has changed since: restore that model"),
        pytest.raises(DataError, match=r"stay as it is; got the model .*mine, which has changed .*; bring it back$"),
    ):
        Job.resume(tmp_path / "run")
    with pytest.warns(UserWarning, match="which has changed since"):
        fastllm.load(tmp_path / "run", backend="numpy")
    model.parameters["blocks.0.feed_forward.down.weight"][...] = before
    fastllm.save(tmp_path / "mine", model, tokenizer)
    Job.resume(tmp_path / "run").train(Recorder())
    for progress in None, "[1, 2]", "no JSON", '{"base": true}', '{"base": "x"}':  # without a warning
        if progress is not None:
            (tmp_path / "run" / "checkpoint" / "progress.json").write_text(progress)
        fastllm.load(tmp_path / "run", backend="numpy")


def test_a_checkpoint_in_which_nothing_is_learnt_yet(tmp_path, base):
    """b is 0: by their numbers, the additions to GPT-2's query, key and value can't be told apart."""
    config = tuning_job(tmp_path, base, {"rank": 3, "rank_stabilized": True})
    job = Job.start(tmp_path / "run", config)
    job._save(job.phases[0], job._make_trainer(job.phases[0]))
    resumed = Job.resume(tmp_path / "run")
    assert resumed.model.adapter.additions == job.model.adapter.additions
    assert resumed.model.adapter.flat.tobytes() == job.model.adapter.flat.tobytes()
    resumed.train(Recorder())
    whole = Job.start(tmp_path / "whole", config)
    whole.train(Recorder())
    assert resumed.model.adapter.flat.tobytes() == whole.model.adapter.flat.tobytes()


@kinds
def test_a_run_is_opened_as_what_was_tuned(tmp_path, base, lora):
    job = Job.start(tmp_path / "run", tuning_job(tmp_path, base, lora))
    tokens = job.tokenizer.encode("Bees like honey. Ants make rain.")
    plain = job.model.forward(tokens)
    job.train(Recorder())
    tuned = job.model.forward(tokens)
    assert np.abs(tuned - plain).max() > 0.05
    model, tokenizer = fastllm.load(tmp_path / "run", backend="numpy")
    np.testing.assert_allclose(model.forward(tokens), tuned, atol=1e-5)
    assert tokenizer.decode(tokens) == job.tokenizer.decode(tokens)
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    rest = ["optimizer.safetensors", "progress.json", "tokenizer.json"]
    if lora is None:
        assert model.adapter is None and {"config.json", "model.safetensors", *rest} <= {*files}
        return
    assert files == [*ADAPTER, *rest]
    assert model.origin == str(base)
    assert (tmp_path / "run" / "checkpoint" / ADAPTER[1]).stat().st_size < 5 * 4 * job.model.adapter.flat.size + 9000
    additions = additions_of(model.config, LoRAConfig(**lora))
    assert job.model.adapter.additions == additions
    moments = read_arrays(tmp_path / "run" / "checkpoint" / "optimizer.safetensors")
    assert moments["first"].shape == job.model.adapter.flat.shape
    exact = read_adapter(model.config, tmp_path / "run" / "checkpoint", additions)
    assert exact.flat.tobytes() == job.model.adapter.flat.tobytes()


def test_merged(tmp_path, base, capsys):
    """The merged checkpoint needs neither the base nor the run."""
    job = Job.start(tmp_path / "run", tuning_job(tmp_path, base))
    job.train(Recorder())
    tokens = job.tokenizer.encode("Bees like honey. Ants make rain.")
    expected = job.model.forward(tokens)
    (tmp_path / "merged").mkdir()  # an empty one is as good as none
    assert cli.main(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    assert capsys.readouterr().out == (
        f"merged model: {tmp_path / 'merged'} ({job.model.parameter_count:,} parameters)\n"
    )
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "base")
    model, tokenizer = fastllm.load(tmp_path / "merged", backend="numpy")
    assert model.adapter is None
    np.testing.assert_allclose(model.forward(tokens), expected, atol=1e-4)
    assert tokenizer.encode("Bees like honey.").tolist() == job.tokenizer.encode("Bees like honey.").tolist()


def test_merging_what_is_no_adapter(tmp_path, capsys):
    write_checkpoint(tmp_path / "base")
    assert cli.main(["merge", str(tmp_path / "base"), str(tmp_path / "merged")]) == 1
    assert "merge needs a model with an adapter; got" in capsys.readouterr().err
    assert cli.main(["merge", str(tmp_path / "missing"), str(tmp_path / "merged")]) == 1
    assert cli.main(["merge", str(tmp_path / "base"), str(tmp_path / "base")]) == 1
    assert "must be a new or an empty folder" in capsys.readouterr().err
    assert cli.main(["merge", str(tmp_path / "base"), str(tmp_path / "merged.gguf")]) == 2
    assert "merge writes a folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


@pytest.fixture
def known(tmp_path):
    """A checkpoint of a model that answers KNOWN, and other answers as a file."""
    write_checkpoint(tmp_path / "known")
    records = [dialogue("Is it far?", "No, it is near."), dialogue("Who are you?", "A rose.")]
    return tmp_path / "known", records, write_lines(tmp_path / "new.jsonl", records)


@kinds
def test_new_answers_are_learnt(tmp_path, known, lora):
    """A model that answered otherwise."""
    base, records, data = known
    model, tokenizer = learned()
    assert exact_answers(model, tokenizer, KNOWN)[0] > 1
    assert exact_answers(model, tokenizer, records)[0] == 0
    config = tuning_job(tmp_path, base, lora, data=data, validation=data, epochs=None, steps=60, learning_rate=1e-2)
    Job.start(tmp_path / "run", config).train(Recorder())
    assert exact_answers(*fastllm.load(tmp_path / "run", backend="numpy"), records) == (2, 2)
    assert exact_answers(*fastllm.load(base, backend="numpy"), records)[0] == 0


def test_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, base):
    config = tuning_job(tmp_path, base)
    job = Job.start(tmp_path / "run", config)
    resumed = Job.resume(tmp_path / "run")
    assert resumed.model.adapter.flat.tobytes() == job.model.adapter.flat.tobytes()
    assert resumed.model.adapter.additions == job.model.adapter.additions


def test_a_checkpoint_of_another_job(tmp_path, known):
    """config.toml changed by hand between."""
    base, _, data = known
    config = tuning_job(tmp_path, base, data=data, validation=data)
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", config).train(stop_at(None, 1))
    path = tmp_path / "run" / "config.toml"
    given = path.read_text()
    path.write_text(given.replace("alpha = ", "alpha = 1"))
    with pytest.raises(FormatError, match=r"must have the scale .*, by the job's \[lora\]; got .*; put that back"):
        Job.resume(tmp_path / "run")
    path.write_text(given.replace("rank = 3", "rank = 4"))
    with pytest.raises(
        FormatError, match=r"must be of rank 4, by the job's \[lora\]; got one of rank 3; put that back"
    ):
        Job.resume(tmp_path / "run")
    path.write_text(re.sub("targets = .*", 'targets = ["query"]', given))
    with pytest.raises(FormatError, match=r"must have no addition, by the job's \[lora\]; got one of rank 3"):
        Job.resume(tmp_path / "run")
    path.write_text(re.sub(r"\[lora\]\n(.+\n)+", "", given))
    with pytest.raises(
        ConfigError, match=r"a run must keep its \[lora\]; got none in config.toml, where there was one"
    ):
        Job.resume(tmp_path / "run")


def test_a_run_of_all_parameters_that_is_given_an_adapter(tmp_path, known):
    base, _, data = known
    with pytest.raises(Interrupted):
        Job.start(tmp_path / "run", tuning_job(tmp_path, base, None, data=data, validation=data)).train(
            stop_at(None, 1)
        )
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text().replace("[optimizer]", "[lora]\nrank = 3\n\n[optimizer]"))
    with pytest.raises(
        ConfigError, match=r"a run must keep its \[lora\]; got one in config.toml, where there was none"
    ):
        Job.resume(tmp_path / "run")


def test_a_model_with_an_adapter_is_not_tuned(tmp_path, known):
    base, _, data = known
    Job.start(tmp_path / "run", tuning_job(tmp_path, base, data=data, validation=data, epochs=1)).train(Recorder())
    for lora in (None, LORA):
        with pytest.raises(ConfigError, match=r"a model to be tuned must have no adapter; got .*run with one"):
            Job.start(tmp_path / "again", tuning_job(tmp_path, tmp_path / "run", lora, data=data, validation=data))
    assert not (tmp_path / "again").exists()


def test_longer_examples_are_left_out_and_it_is_said(tmp_path, known):
    base, records, data = known
    lengths = {len(example.tokens) for example in make_examples(records, learned()[1], 99)}
    assert len(lengths) == 2
    config = tuning_job(tmp_path, base, data=data, validation=data, sequence_length=min(lengths))
    job = Job.start(tmp_path / "run", config)
    assert [len(example.tokens) for example in job.phases[0].dataset.examples] == [min(lengths)]
    assert any("1 of 2 records" in note and f"than sequence_length = {min(lengths)}" in note for note in job.notes)
    config = tuning_job(tmp_path, base, data=data, validation=data, sequence_length=3)
    with pytest.raises(DataError, match="at least one record that fits; 2 of 2 records"):
        Job.start(tmp_path / "none", config)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_what_is_said_and_compiled_before(tmp_path, known, capsys, backend):
    """Parameters stay, gradients are 0, no memory is taken for what isn't trained."""
    base, _, data = known
    tables = {"lora": LORA, "model": {"path": str(base)}, "backend": backend}
    phase = {"name": "new", "data": data, "epochs": 1, "learning_rate": 1e-3}
    job = Job.start(tmp_path / "run", JobConfig.from_dict({"phases": [phase], **tables}))
    before, size = job.model.adapter.flat.copy(), job.model.parameter_count
    prepare(job)
    assert capsys.readouterr().out.endswith(
        f"; {size:,} parameters, which stay; {before.size:,} in low-rank maps are trained\n"
    )
    np.testing.assert_array_equal(job.model.adapter.flat, before)
    assert not job.model.gradients.flat.any()
    assert "(words)" not in describe(job)
    job.model.remove_adapter()
    assert describe(job).endswith(f"; {job.model.unfreeze().flat.size:,} parameters")


# The command


def train(capsys, *words):
    try:
        status = cli.main(["train", *map(str, words)])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_the_command_with_its_defaults(tmp_path, known, monkeypatch, capsys):
    base, records, _ = known
    pairs = [[message["content"] for message in record["messages"]] for record in records]
    (tmp_path / "new.json").write_text(json.dumps([{"instruction": q, "input": "", "output": a} for q, a in pairs]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.jsonl").unlink()
    status, out, err = train(capsys, "new.json", "--model", "known", "--lora", "--validation", "new.json")
    assert status == 0, err
    assert "low-rank maps are trained" in out
    config = JobConfig.read("runs/new/config.toml")
    assert config.model == {"path": str(base)}
    assert config.lora == LoRAConfig(rank=8, alpha=16.0)
    (phase,) = config.phases
    assert (phase.epochs, phase.rows_per_update, phase.learning_rate, phase.join) == (3, 8, 2e-4, False)
    assert (phase.schedule, phase.warmup, phase.final_learning_rate, phase.sequence_length) == (
        "cosine", 10, 2e-5, 1024
    )  # fmt: skip
    assert config.optimizer.weight_decay == 0
    status, _, err = train(capsys, "new.json", "--model", "known", "--run", "all", "--learning-rate", "0.01")
    assert status == 0, err
    config = JobConfig.read("all/config.toml")
    assert (config.lora, config.phases[0].learning_rate, config.checkpoint_seconds) == (None, 0.01, 300.0)
    status, _, err = train(capsys, "new.json", "--model", "known", "--run", "few", "--lora", "--rank", "2",
                           "--targets", "query, value", "--steps", "4", "--sequence-length", "20")  # fmt: skip
    assert status == 0, err
    config = JobConfig.read("few/config.toml")
    assert config.lora == LoRAConfig(rank=2, alpha=4.0, targets=("query", "value"))
    assert (config.phases[0].steps, config.phases[0].sequence_length) == (4, 20)
    # and what else there is opens the runs
    for command in (["generate", "few", "Is it"], ["eval", "few", "new.json", "--json"], ["merge", "few", "one"]):
        assert cli.main(command) == 0
    assert cli.main(["train", "--run", "few", "--resume"]) == 0


WRONG_USE = {
    "lora alone": (["new.jsonl", "--lora"], "--lora needs an existing model; got none"),
    "rank alone": (["new.jsonl", "--model", "known", "--rank", "4"], "--rank goes with --lora"),
    "targets alone": (["new.jsonl", "--targets", "query"], "--targets goes with --lora"),
    "preset": (["new.jsonl", "--model", "known", "--preset", "nano"], "--model goes without --preset"),
    "tokenizer": (["new.jsonl", "--model", "known", "--tokenizer", "byte"], "--model goes without --tokenizer"),
    "config": (["--config", "job.toml", "--model", "known"], "for the file says the rest; got --model too; drop it"),
    "config, lora": (["--config", "job.toml", "--lora"], "got --lora too; drop it"),
    "resume": (["--resume", "--run", "x", "--model", "known"], "config.toml says the rest; got --model too; drop it"),
    "rank": (["new.jsonl", "--model", "known", "--lora", "--rank", "0"], "lora: rank must be"),
    "alpha": (["new.jsonl", "--model", "known", "--lora", "--alpha", "-1"], "lora: alpha must be"),
    "targets": (["new.jsonl", "--model", "known", "--lora", "--targets", "q_proj"], "lora: targets must be"),
    "maps": (["new.jsonl", "--model", "known", "--lora", "--targets", "gate"], "it has none of gate"),
    "length": (["new.jsonl", "--model", "known", "--sequence-length", "0"], "sequence_length must be 1 or more"),
}


@pytest.mark.parametrize(("words", "message"), WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use_ends_with_status_2(tmp_path, known, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = train(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("runs/*"))


def test_a_missing_model(tmp_path, known, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, err = train(capsys, "new.jsonl", "--model", "./missing")
    assert status == 1
    assert "there must be a model at" in err
    assert not list(tmp_path.glob("runs/*"))


# The file

PHASE = {"name": "new", "data": "new.jsonl", "learning_rate": 1e-3, "epochs": 3}


@pytest.mark.parametrize("lora", [None, {}, {"rank": 4, "alpha": 3, "targets": ["up"], "rank_stabilized": True}])
def test_jobs_come_back(tmp_path, lora):
    tables = {} if lora is None else {"lora": lora}
    config = JobConfig.from_dict({"phases": [PHASE], "model": {"path": 'a "model"\\x'}, **tables})
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert JobConfig.read(tmp_path / "config.toml") == config
    assert config.lora == (None if lora is None else LoRAConfig(**lora))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"path": "x", "preset": "nano"}}, "path goes alone, the model is as it is; got preset too"),
        ({"model": {"path": "x", "dropout": 0.1}}, "path goes alone, the model is as it is; got dropout too"),
        ({"model": {"path": 3}}, "model: path must name a file or folder; got 3"),
        ({"model": {"path": ""}}, "model: path must name a file or folder; got ''"),
        ({"model": {"path": "x"}, "tokenizer": {"type": "byte"}}, "has its own tokenizer"),
        ({"lora": {}}, r"\[lora\] is trained beside a model that is there"),
        ({"model": {"path": "x"}, "lora": 3}, "lora must be a table; got 3"),
        ({"model": {"path": "x"}, "lora": {"rnak": 3}}, "lora has no key 'rnak'; did you mean 'rank'"),
        ({"model": {"path": "x"}, "lora": {"rank": "3"}}, "lora: rank must be a whole number"),
    ],
)
def test_wrong_jobs(tables, message):
    with pytest.raises(ConfigError, match=message):
        JobConfig.from_dict({"phases": [PHASE], **tables})


# A published model


def test_a_published_model_is_tuned(smollm2, shared_data, tmp_path):
    """Some updates on its quantised weights: records held back become likelier, and the run is opened and resumed."""
    records = read_records(shared_data / "instruction-data.json")
    write_lines(tmp_path / "train.jsonl", records[:40])
    tables = {"model": {"path": str(smollm2)}, "lora": {"rank": 4, "targets": ["query", "value", "down"]}}
    phase = {"name": "tune", "data": str(tmp_path / "train.jsonl"), "steps": 5, "rows_per_update": 4,
             "learning_rate": 1e-3, "warmup": 1}  # fmt: skip
    job = Job.start(tmp_path / "run", JobConfig.from_dict({"phases": [phase], **tables}))
    tokenizer = job.tokenizer
    held_back = Examples(make_examples(records[40:52], tokenizer, 256))
    before = evaluate(job.model, held_back)
    job.train(Recorder())
    assert job.model.is_frozen
    after = evaluate(job.model, held_back)
    assert after.loss < before.loss - 0.05
    again, _ = fastllm.load(tmp_path / "run")
    assert evaluate(again, held_back).total == pytest.approx(after.total, rel=1e-6)
    assert Job.resume(tmp_path / "run").is_done
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint"


def test_examples_of_a_published_model(smollm2):
    """Its prompt is what it is asked with, its answer what it is to say; where both would become a token, too."""
    from fastllm.checkpoint import load

    _, tokenizer = load(smollm2)
    for answer in ("Paris.", "\n\nParis.", " Paris", "", "<|im_end|>"):
        messages = [{"role": "user", "content": "Capital of France?\n"}, {"role": "assistant", "content": answer}]
        ((ids, said),) = training_sequences(tokenizer, messages)
        prompt = prompt_tokens(tokenizer, messages[:1])
        assert said == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        assert ids[: len(prompt)] == prompt
        assert tokenizer.decode(ids[len(prompt) : -1]) == answer
        assert tokenizer.tokens[ids[-1]] == "<|im_end|>"
    turns = [*messages[:1], {"role": "assistant", "content": "Paris."}] * 3
    ((ids, said),) = training_sequences(tokenizer, turns)
    assert ids == prompt_tokens(tokenizer, turns, add_generation_prompt=False)[: len(ids)]
    spoken = [token for token, mine in zip(ids, said, strict=True) if mine]
    assert tokenizer.decode(spoken, skip_special=False) == "Paris.<|im_end|>" * 3
