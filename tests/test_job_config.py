"""A job's TOML file: round trips, and every wrong key or value named."""

import dataclasses
import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_jobs import make_job

import fastllm
from fastllm.errors import ConfigError
from fastllm.training.config import JobConfig, PhaseConfig

PHASE = {"name": "facts", "data": "facts.jsonl", "learning_rate": 1e-3, "epochs": 3}


def job(phase=PHASE, **tables):
    return JobConfig.from_dict({"phases": [phase], **tables})


def reread(config, folder):
    path = folder / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    return JobConfig.read(path)


@pytest.mark.parametrize("tokenizer", [{"type": "character", "max_size": 50}, {"path": "runs/other"}])
def test_a_full_job_comes_back(tmp_path, tokenizer):
    config = make_job(tmp_path, tokenizer=tokenizer)
    assert reread(config, tmp_path) == config


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
        ("adamw", {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
        ("sgd", {"momentum": 0.9}),
        ("lion", {"beta1": 0.9, "beta2": 0.99}),
    ],
)
def test_an_optimizer_is_written_with_the_options_that_it_has(tmp_path, name, options):
    config = job(optimizer={"name": name})
    table = tomllib.loads(config.to_toml())["optimizer"]
    assert table == {"name": name, **options, "weight_decay": 0.0, "max_norm": 1.0}
    assert reread(config, tmp_path) == config
    assert config.optimizer.make(fastllm.Model(fastllm.preset("nano", vocab_size=9, layers=1))).steps == 0


LLAMA3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"preset": "llama", "kv_heads": 3, "tied_head": False, "norm_eps": 1e-6},
        {"preset": "nano", "rope_scaling": LLAMA3},
        {"width": 8, "hidden": 9, "layers": 1, "heads": 2, "context": 5, "rope_theta": 1e6},
    ],
)
def test_models_come_back(tmp_path, model):
    config = job(model=model or {"preset": "nano"})
    assert reread(config, tmp_path) == config
    assert reread(config, tmp_path).model_config(77) == config.model_config(77)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 9), (10, 5), (1, 0)])
def test_a_warmup_is_half_of_all_steps_at_most(steps, warmup):
    assert job({**PHASE, "warmup": 9}).phases[0].make_schedule(steps).warmup == warmup


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
positive = st.floats(1e-300, 1e300)


files = texts.filter(lambda name: name != "" and "\0" not in name)
names = texts.filter(str.strip)


@given(name=names, data=files, validation=st.none() | files, rate=positive, seed=st.integers(0, 2**32 - 1))
def test_any_strings_and_numbers_come_back(tmp_path_factory, name, data, validation, rate, seed):
    phase = {**PHASE, "name": name, "data": data, "learning_rate": rate}
    if validation is not None:
        phase["validation"] = validation
    config = job(phase, seed=seed)
    assert reread(config, tmp_path_factory.getbasetemp()) == config


def test_every_field_is_written(tmp_path):
    """What a file leaves out may have another default in the next version."""
    lines = make_job(tmp_path).to_toml().splitlines()
    keys = {line.partition(" = ")[0] for line in lines}
    optional = {"sequence_length", "steps"}  # None in both phases here
    names = {field.name for field in dataclasses.fields(PhaseConfig)}
    assert names - keys == optional
    assert {"seed", "backend", "checkpoint_seconds", "beta2", "eps", "max_norm", "minimum_count"} <= keys


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"sead": 1}, "the job has no key 'sead'; did you mean 'seed'"),
        ({"optimizer": {"nmae": "adam"}}, "optimizer has no key 'nmae'; did you mean 'name'"),
        ({"tokenizer": {"typ": "word"}}, "tokenizer has no key 'typ'; did you mean 'type'"),
        ({"model": {"preset": "nano", "widht": 8}}, "no key 'widht'; did you mean 'width'"),
        ({"model": {"preset": "nanno"}}, "no preset 'nanno'; did you mean 'nano'"),
        ({"model": {"preset": 3}}, "preset must be one of"),
        ({"model": {"preset": "nano", "vocab_size": 5}}, "vocab_size follows from the data"),
        ({"model": {"preset": "nano", "heads": 3}}, "width must be a multiple of heads"),
        ({"model": 3}, "model must be a table"),
        ({"optimizer": []}, "optimizer must be a table"),
        ({"optimizer": {"name": "adamx"}}, "name must be one of adam, adamw, sgd, lion; got 'adamx'"),
        ({"optimizer": {"name": "adam", "weight_decay": 0.1}}, "adam takes no weight_decay"),
        ({"optimizer": {"beta1": 1.0}}, "beta1"),
        ({"optimizer": {"beta2": -1.0}}, "beta2"),
        ({"optimizer": {"eps": 0.0}}, "eps"),
        ({"optimizer": {"name": "sgd", "momentum": 2.0}}, "momentum must be at least 0 and below 1; got 2.0"),
        ({"optimizer": {"momentum": 0.9}}, "adamw takes no momentum; got 0.9; drop it"),
        ({"optimizer": {"name": "sgd", "beta1": 0.9}}, "sgd takes no beta1"),
        ({"optimizer": {"name": "sgd", "beta2": 0.9}}, "sgd takes no beta2"),
        ({"optimizer": {"name": "lion", "eps": 1e-8}}, "lion takes no eps"),
        ({"optimizer": {"weight_decay": -1.0}}, "weight_decay"),
        ({"optimizer": {"max_norm": -1.0}}, "max_norm"),
        ({"optimizer": {"max_norm": "big"}}, "max_norm must be int or float; got 'big'"),
        ({"optimizer": {"beta1": True}}, "beta1 must be int or float; got True"),
        ({"tokenizer": {"type": "words"}}, "type must be one of word, character, byte, bpe; got 'words'"),
        ({"tokenizer": {"max_size": 0}}, "max_size"),
        ({"tokenizer": {"path": ""}}, "path must name a file or folder"),
        ({"tokenizer": {"path": "a\0b"}}, "path must name a file or folder"),
        ({"tokenizer": {"path": "x", "max_size": 500}}, "path goes alone"),
        ({"tokenizer": {"path": "x", "type": "byte"}}, "path goes alone"),
        ({"tokenizer": {"minimum_count": 0}}, "minimum_count"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 1.5}, "seed must be int; got 1.5"),
        ({"seed": "1"}, "seed must be int; got '1'"),
        ({"backend": "torch"}, "backend must be numba or numpy; got 'torch'"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must not be negative"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds must be finite"),
        ({"phases": []}, "at least one phase"),
        ({"phases": 3}, "phases must be tables"),
        ({"phases": [3]}, "phases must be a table"),
        ({"phases": [PHASE, PHASE]}, "phases must have different names"),
    ],
)
def test_wrong_jobs(tables, message):
    with pytest.raises(ConfigError, match=message) as raised:
        JobConfig.from_dict({"phases": [PHASE], **tables})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 3}, "phases has no key 'epoch'; did you mean 'epochs'"),
        ({"name": 3}, "name must be str; got 3"),
        ({"name": " "}, "a phase must have a name to be shown by; got ' '"),
        ({"epochs": None}, "epochs must be int; got None"),
        ({"steps": 3}, "needs epochs or steps, not both"),
        *[({name: 0}, f"{name} must be 1 or more; got 0")
          for name in ("epochs", "rows_per_update", "accumulate", "sequence_length", "evaluate_every")],
        ({"learning_rate": 0.0}, "a learning rate must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate must be finite"),
        ({"final_learning_rate": 1.0}, "final learning rate must be between 0 and the peak"),
        ({"final_learning_rate": 1e-9, "schedule": "constant"}, "a constant schedule has no final learning rate"),
        ({"schedule": "cosin"}, "schedule must be one of"),
        ({"rows_per_update": 10**30}, r"rows_per_update must be below 2\^40"),
        ({"data": "a\0b"}, "data must name a file"),
        ({"validation": ""}, "validation must name a file"),
        ({"warmup": -1}, "warmup"),
    ],
)  # fmt: skip
def test_wrong_phases(fields, message):
    with pytest.raises(ConfigError, match=message):
        job({**PHASE, **fields})


def test_lion_has_its_own_beta():
    jobs = [{"phases": [PHASE], "optimizer": {"name": name}} for name in ("lion", "adamw")]
    assert [JobConfig.from_dict(job).optimizer.beta2 for job in jobs] == [0.99, 0.999]


@pytest.mark.parametrize("name", ["name", "data", "learning_rate"])
def test_a_phase_lacks_a_key(name):
    with pytest.raises(ConfigError, match=f"phases needs {name}"):
        job({key: value for key, value in PHASE.items() if key != name})


@pytest.mark.parametrize(
    ("content", "message"), [(b"seed = ", "must be TOML"), (b"\xff", "must be TOML"), (b"", "phase")]
)
def test_wrong_files(tmp_path, content, message):
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        JobConfig.read(path)
    assert str(path) in str(raised.value)
    with pytest.raises(FileNotFoundError):
        JobConfig.read(tmp_path / "missing.toml")
    with pytest.raises(IsADirectoryError, match="got a folder; name a file in it"):
        JobConfig.read(tmp_path)
