"""Checkpoints: bits come back, no failure loses the old one, no damaged file does more than raise an error."""

import os
import re

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_models import load, rewrite_config, rewrite_model, rewrite_theirs

import fastllm
from fastllm import atomic, checkpoint
from fastllm.atomic import work_path
from fastllm.checkpoint import CONFIG, GENERATION, OPTIMIZER, PROGRESS, TOKENIZER, WEIGHTS, load_progress
from fastllm.errors import FormatError
from fastllm.formats import model_folder
from fastllm.small_files import MAX_JSON


def weights_of(path):
    return load(path)[0].parameters.flat.tobytes()


def changed(model):
    """The model, with other weights."""
    model.parameters.flat += 1
    return model


# Round trips


def test_everything_comes_back(saved, tiny_model, tokenizer):
    model, words = load(saved)
    assert model.parameters.flat.tobytes() == tiny_model.parameters.flat.tobytes()
    assert model.config == tiny_model.config
    assert words.tokens == tokenizer.tokens
    assert sorted(os.listdir(saved)) == [CONFIG, GENERATION, WEIGHTS, TOKENIZER]
    assert os.listdir(saved.parent) == ["model"]


def test_a_run_folder_gives_its_checkpoint(tmp_path, tiny_model, tokenizer):
    fastllm.save(tmp_path / "run" / "checkpoint", tiny_model, tokenizer)
    assert weights_of(tmp_path / "run") == tiny_model.parameters.flat.tobytes()


@pytest.mark.parametrize("path", [".", "..", "../checkpoint", "../.."])
def test_relative_paths(tmp_path, tiny_model, tokenizer, monkeypatch, path):
    """From within a checkpoint or a folder in it."""
    fastllm.save(tmp_path / "checkpoint", tiny_model, tokenizer)
    inside = tmp_path / "checkpoint" / "folder"
    inside.mkdir()
    monkeypatch.chdir(inside if path.startswith("..") and path != "../checkpoint" else inside.parent)
    assert weights_of(path) == tiny_model.parameters.flat.tobytes()
    if path == ".":
        fastllm.save(path, changed(tiny_model), tokenizer)
        assert weights_of(tmp_path / "checkpoint") == tiny_model.parameters.flat.tobytes()


@pytest.mark.parametrize("kind", [fastllm.Adam, fastllm.SGD, fastllm.Lion])
def test_optimizer_and_progress_come_back(tmp_path, tiny_model, tokenizer, kind):
    optimizer = kind(tiny_model)
    tiny_model.loss_and_gradients([1, 2, 3], [2, 3, 4])
    optimizer.step(0.1)
    progress = {"phase": "facts", "step": 1}
    fastllm.save(tmp_path / "model", tiny_model, tokenizer)
    with pytest.raises(FormatError, match=f"must hold {PROGRESS} to resume training"):
        load_progress(tmp_path / "model")
    checkpoint.save(tmp_path / "model", tiny_model, tokenizer, optimizer, progress)
    model, _ = load(tmp_path / "model")
    other = kind(model)
    assert load_progress(tmp_path / "model", other) == progress
    for name, array in optimizer.state().items():
        assert other.state()[name].tobytes() == array.tobytes(), name


def test_an_optimizer_without_progress_comes_back(tmp_path, tiny_model, tokenizer):
    optimizer = fastllm.AdamW(tiny_model)
    optimizer.steps = 7
    fastllm.save(tmp_path / "model", tiny_model, tokenizer, optimizer)
    again = fastllm.AdamW(tiny_model)
    assert fastllm.load_progress(tmp_path / "model", again) == {}
    assert again.steps == 7


def test_a_state_of_another_optimizer(tmp_path, tiny_model, tokenizer):
    checkpoint.save(tmp_path / "model", tiny_model, tokenizer, fastllm.Lion(tiny_model), {})
    with pytest.raises(FormatError, match="must be of the same optimizer"):
        load_progress(tmp_path / "model", fastllm.Adam(tiny_model))


def test_training_goes_on_with_the_same_bits_where_rope_is_on_pairs(tmp_path, tokenizer):
    """Hugging Face's names have it on halves: rows would change places, and the optimizer's moments with them not."""
    config = fastllm.preset(
        "llama", vocab_size=tokenizer.vocab_size, width=16, hidden=12, layers=1, heads=2, kv_heads=1, context=16,
        rope_interleaved=True,
    )  # fmt: skip

    def train(model, optimizer, seeds):
        for seed in seeds:
            tokens = np.random.default_rng(seed).integers(0, tokenizer.vocab_size, (2, 9))
            model.zero_gradients()
            model.loss_and_gradients(tokens[:, :-1], tokens[:, 1:])
            optimizer.step(0.01)

    model = fastllm.Model(config, backend="numpy")
    optimizer = fastllm.Adam(model)
    train(model, optimizer, range(3))
    checkpoint.save(tmp_path / "model", model, tokenizer, optimizer, {})
    resumed, _ = load(tmp_path / "model")
    other = fastllm.Adam(resumed)
    load_progress(tmp_path / "model", other)
    train(model, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    assert resumed.config == config
    assert resumed.parameters.flat.tobytes() == model.parameters.flat.tobytes()


# Failures while it is written


@pytest.mark.parametrize(
    "place",
    [
        "checkpoint._write_arrays",
        "checkpoint._write_json",
        "formats.model_folder._flush",
        "formats.model_folder.os.mkdir",
    ],
)
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "key"])
def test_a_failing_write_leaves_the_old_checkpoint(saved, tiny_model, tokenizer, monkeypatch, place, failure):
    before = weights_of(saved)

    def fail(*arguments, **options):
        raise failure

    monkeypatch.setattr(f"fastllm.{place}", fail)
    with pytest.raises(type(failure)):
        fastllm.save(saved, changed(tiny_model), tokenizer)
    monkeypatch.undo()
    assert weights_of(saved) == before
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX's")
@pytest.mark.parametrize("size", [10, 1000])
def test_a_full_disk(saved, tiny_model, tokenizer, size):
    """Simulated by a limit on file sizes: real writes fail, in safetensors as in Python."""
    import resource

    before = weights_of(saved)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{re.escape(str(saved))} could not be written: File too large;") as raised:
            fastllm.save(saved, changed(tiny_model), tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert weights_of(saved) == before
    assert os.listdir(saved.parent) == ["model"]


class Killed(BaseException):
    """Simulates the end of the process: nothing is cleaned up after it."""


@pytest.mark.parametrize("reader", [weights_of, None], ids=["load", "save"])
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_around_the_renames(saved, tiny_model, tokenizer, monkeypatch, renames, reader):
    """Before, between and after them: the old checkpoint or the new, whole."""
    old, replace, calls = weights_of(saved), os.replace, []

    def dying(source, target):
        if os.path.isfile(source):  # the tokenizer's, which is replaced too
            return replace(source, target)
        if len(calls) == renames:
            raise Killed
        calls.append(replace(source, target))

    def dying_removal(old_folder, folder):
        if len(calls) == renames == 2:
            raise Killed
        return move_others(old_folder, folder)

    move_others = model_folder._move_others
    changed(tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", dying)
        patch.setattr(model_folder, "_move_others", dying_removal)
        with pytest.raises(Killed):
            fastllm.save(saved, tiny_model, tokenizer)
    if reader:
        assert reader(saved) == (tiny_model.parameters.flat.tobytes() if renames == 2 else old)
    else:
        fastllm.save(saved, tiny_model, tokenizer)
        assert weights_of(saved) == tiny_model.parameters.flat.tobytes()
        assert os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("refusals", [3, 10**6])
@pytest.mark.parametrize("which", [".old", ""])
def test_a_file_that_windows_holds_open(saved, tiny_model, tokenizer, monkeypatch, refusals, which):
    """Windows can't rename a folder in which a file is open: this is retried, and finally reported."""
    old, replace, calls = weights_of(saved), os.replace, []

    def held(source, target):
        if os.path.isdir(source) and str(target).endswith(which or "model") and str(source).find(".old") < 0:
            calls.append(target)
            if len(calls) <= refusals:
                raise PermissionError(13, "Access is denied")
        return replace(source, target)

    monkeypatch.setattr(model_folder, "WAIT", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", held)
        patch.setattr("sys.platform", "win32")
        if refusals == 3:
            fastllm.save(saved, changed(tiny_model), tokenizer)
        else:
            with pytest.raises(OSError, match="model could not be replaced, as its files were in use each time: Acc"):
                fastllm.save(saved, changed(tiny_model), tokenizer)
    assert weights_of(saved) == (tiny_model.parameters.flat.tobytes() if refusals == 3 else old)
    assert os.listdir(saved.parent) == ["model"]


def test_a_half_written_checkpoint_beside_it_is_no_matter(saved, tiny_model, tokenizer, monkeypatch):
    """As kill -9 leaves it."""
    new = work_path(saved)
    monkeypatch.setattr(atomic, "_token", "another process")
    new.mkdir()
    (new / WEIGHTS).write_bytes(b"half")
    before = weights_of(saved)
    fastllm.save(saved, changed(tiny_model), tokenizer)
    assert weights_of(saved) == tiny_model.parameters.flat.tobytes() != before
    assert os.listdir(saved.parent) == ["model"]


# What is not ours is not touched


@pytest.mark.parametrize("content", [["notes.txt"], [WEIGHTS], [CONFIG]], ids=str)
def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path, tiny_model, tokenizer, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in content:
        (folder / name).write_text("mine")
    with pytest.raises(FileExistsError, match="must be new or a checkpoint"):
        fastllm.save(folder, tiny_model, tokenizer)
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(content, "mine")


def test_files_of_others_come_along(saved, tiny_model, tokenizer):
    """Files that are not part of the model stay, whoever wrote the folder; the old model's files don't."""
    checkpoint.save(saved, tiny_model, tokenizer, fastllm.SGD(tiny_model), {"step": 3})
    (saved / "NOTES.txt").write_text("mine")
    (saved / "README.md").write_text("mine too")
    (saved / "onnx" / "deep").mkdir(parents=True)
    (saved / "onnx" / "deep" / "x").write_text("x")
    (saved / "model-00001-of-00002.safetensors").write_text("of the model that was")
    links = hasattr(os, "symlink") and os.name == "posix"
    if links:
        (saved / "link").symlink_to("nowhere")
    for _ in range(2):
        fastllm.save(saved, changed(tiny_model), tokenizer)
    assert weights_of(saved) == tiny_model.parameters.flat.tobytes()
    assert sorted(os.listdir(saved)) == sorted(
        ["NOTES.txt", "README.md", CONFIG, GENERATION, WEIGHTS, "onnx", TOKENIZER, *(["link"] if links else [])]
    )
    assert (saved / "NOTES.txt").read_text() == "mine"
    assert (saved / "onnx" / "deep" / "x").read_text() == "x"
    assert not links or os.readlink(saved / "link") == "nowhere"
    assert os.listdir(saved.parent) == ["model"]


def test_what_is_only_called_like_a_models_part_stays(saved, tiny_model, tokenizer):
    mine = ["model_best.safetensors", "models-backup.safetensors", "model.fp16.safetensors", "tokenizer.model/deep"]
    for name in mine:
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("mine")
    fastllm.save(saved, changed(tiny_model), tokenizer)
    assert [(saved / name).read_text() for name in mine] == ["mine"] * len(mine)


@pytest.mark.parametrize("renames", [1, 2])
def test_files_of_others_come_along_though_it_is_killed(saved, tiny_model, tokenizer, monkeypatch, renames):
    """Between the renames, and before they are moved: the next one takes them."""
    (saved / "NOTES.txt").write_text("mine")
    replace, calls = os.replace, []

    def dying(source, target):
        if os.path.isfile(source) and not str(source).endswith("NOTES.txt"):
            return replace(source, target)
        if len(calls) == renames:
            raise Killed
        calls.append(replace(source, target))

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", dying)
        with pytest.raises(Killed):
            fastllm.save(saved, changed(tiny_model), tokenizer)
    fastllm.save(saved, tiny_model, tokenizer)
    assert (saved / "NOTES.txt").read_text() == "mine"
    assert os.listdir(saved.parent) == ["model"]


def test_a_reader_between_the_renames_is_no_failure(saved, tiny_model, tokenizer, monkeypatch):
    """It puts the old one back, and the writer begins again."""
    replace, calls = os.replace, []

    def disturbed(source, target):
        if str(source).endswith(".work.tmp") and len(calls) < 2:
            calls.append(weights_of(saved))  # which restores
        return replace(source, target)

    monkeypatch.setattr("os.replace", disturbed)
    before = weights_of(saved)
    fastllm.save(saved, changed(tiny_model), tokenizer)
    assert calls == [before, before]
    assert weights_of(saved) == tiny_model.parameters.flat.tobytes()
    assert os.listdir(saved.parent) == ["model"]


def test_what_cannot_be_moved_stays_beside(saved, tiny_model, tokenizer, monkeypatch):
    """As of another user: it is not lost, and the next time is as good as the first."""
    (saved / "notes").mkdir()
    replace = os.replace

    def refusing(source, target):
        if str(source).endswith("notes"):
            raise PermissionError(1, "Operation not permitted")
        return replace(source, target)

    monkeypatch.setattr("os.replace", refusing)
    with pytest.warns(UserWarning, match="not all that stood in .*model before could be .*; it is in .*kept-1"):
        fastllm.save(saved, changed(tiny_model), tokenizer)
    fastllm.save(saved, changed(tiny_model), tokenizer)
    assert weights_of(saved) == tiny_model.parameters.flat.tobytes()
    assert sorted(os.listdir(saved.parent)) == ["model", "model.kept-1"]
    assert os.listdir(saved.with_name("model.kept-1")) == ["notes"]


def test_options_of_generation_that_load_would_refuse_are_not_saved(saved, tiny_model, tokenizer):
    before = weights_of(saved)
    for options in ({"heat": 1}, {"temperature": -1.0}, {"top_p": None}):
        tiny_model.generation_options = options
        with pytest.raises((ValueError, TypeError)):
            fastllm.save(saved, changed(tiny_model), tokenizer)
    assert weights_of(saved) == before
    tiny_model.generation_options = {"logit_bias": {5: -1.0, 3: 2.5}}
    fastllm.save(saved, tiny_model, tokenizer)
    assert load(saved)[0].generation_options == tiny_model.generation_options


def test_a_folder_in_a_file(tmp_path, tiny_model, tokenizer):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"must be in a folder; got .*file, which is a file; choose another"):
        fastllm.save(tmp_path / "file" / "model", tiny_model, tokenizer)


def test_a_file_is_not_replaced(tmp_path, tiny_model, tokenizer):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        fastllm.save(tmp_path / "mine", tiny_model, tokenizer)
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path, tiny_model, tokenizer):
    (tmp_path / "model").mkdir()
    fastllm.save(tmp_path / "model", tiny_model, tokenizer)
    assert weights_of(tmp_path / "model")


@pytest.mark.parametrize("suffix", [".old", ".work.tmp"])
def test_folders_of_similar_names_stay(saved, tiny_model, tokenizer, suffix):
    """model.old may be someone's copy of a model, or something else."""
    mine = saved.with_name(f"model{suffix}")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    fastllm.save(saved, tiny_model, tokenizer)
    assert (mine / "notes.txt").read_text() == "mine"


# Files that are wrong


def test_missing_folders_and_files(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="there must be a model at"):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"must be a model's folder, with a config\.json; got none"):
        load(tmp_path / "empty")
    (saved / TOKENIZER).unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        load(saved)


def rewrite_weights(folder, change):
    arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays)
    safetensors.numpy.save_file(arrays, folder / WEIGHTS)


NAME = "blocks.0.attention.query.weight"
THEIRS = "model.layers.0.self_attn.q_proj.weight"
DAMAGES = {
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "whole safetensors file"),
    "foreign weights": (lambda f: (f / WEIGHTS).write_bytes(b"GGUF" * 100), "whole safetensors file"),
    "cut weights": (lambda f: os.truncate(f / WEIGHTS, 1000), "whole safetensors file"),
    "NaN": (lambda f: rewrite_weights(f, lambda a: a[THEIRS].fill(np.nan)), f"{NAME} must be finite; got NaN"),
    "shape": (lambda f: rewrite_weights(f, lambda a: a.update({THEIRS: a[THEIRS][:-1].copy()})), "of shape"),
    "integers": (
        lambda f: rewrite_weights(f, lambda a: a.update({THEIRS: a[THEIRS].view(np.int32)})),
        "must be of F32, F16, BF16, F64, I64; got 'I32'",
    ),
    "missing weight": (lambda f: rewrite_weights(f, lambda a: a.pop(THEIRS)), f"missing, '{THEIRS}'"),
    "empty config": (lambda f: (f / CONFIG).write_bytes(b""), "must be JSON in UTF-8"),
    "binary config": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "must be JSON in UTF-8"),
    "deep config": (lambda f: (f / CONFIG).write_bytes(b"[" * 10**5), "must be JSON in UTF-8"),
    "list": (lambda f: (f / CONFIG).write_text("[]"), "must be a JSON object"),
    "long config": (lambda f: (f / CONFIG).write_bytes(b" " * (MAX_JSON + 1)), "must have at most"),
    "a key twice": (lambda f: (f / CONFIG).write_text('{"a": 1, "a": 2}'), "the key 'a' twice"),
    "other format": (lambda f: (f / CONFIG).write_text('{"model_type": "bert"}'), "model_type must be one of gpt2"),
    "newer version": (lambda f: rewrite_config(f, version=99), "version"),
    "no model": (lambda f: rewrite_config(f, model=None), "must describe a fastllm model"),
    "odd generation": (lambda f: rewrite_config(f, generation=[1]), "generation options"),
    "ends": (lambda f: rewrite_config(f, generation={"end_ids": 5}), "end_ids must be"),
    "letters for ends": (lambda f: rewrite_config(f, generation={"end_ids": ["a"]}), "end_ids must be"),
    "warm words": (lambda f: rewrite_config(f, generation={"temperature": "hot"}), "temperature must be"),
    "no top_p": (lambda f: rewrite_config(f, generation={"top_p": None}), "top_p must be"),
    "odd option": (lambda f: rewrite_config(f, generation={"heat": 5}), "option must be one of .*got 'heat'"),
    "their sizes": (lambda f: rewrite_theirs(f, intermediate_size=13), "of shape"),
    "their kind": (lambda f: rewrite_theirs(f, hidden_act="relu"), "hidden_act must be"),
    "unknown key": (lambda f: rewrite_model(f, widht=8), "no key 'widht'; did you mean 'width'"),
    "wrong value": (lambda f: rewrite_model(f, dropout=7), "dropout must be"),
    "wrong kind": (lambda f: rewrite_model(f, rope_scaling=7), "rope_scaling must be"),
    "endless number": (lambda f: rewrite_model(f, norm_eps=10**400), "norm_eps must be"),
    "other sizes": (lambda f: rewrite_model(f, hidden=13), "of shape"),
    "huge sizes": (lambda f: rewrite_model(f, hidden=2**31 - 1), "of shape"),
    "huge context": (lambda f: rewrite_model(f, context=10**15), "context"),
    "many layers": (lambda f: rewrite_model(f, layers=10**9), "1000000000 layers must have more"),
    "vocabulary": (lambda f: rewrite_model(f, vocab_size=7), "at most as many tokens as the model"),
    "tokenizer": (lambda f: (f / TOKENIZER).write_text("{}"), "tokenizer"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoints(saved, damage, message):
    damage(saved)
    with pytest.raises(FormatError, match=message) as raised:
        load(saved)
    assert str(saved) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """The bytes of a checkpoint's files, and a folder to damage them in."""
    config = fastllm.preset("nano", vocab_size=tokenizer.vocab_size, width=4, hidden=4, layers=1, heads=1, context=4)
    model = fastllm.Model(config, backend="numpy")
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    checkpoint.save(folder, model, tokenizer, fastllm.Adam(model), {"phase": "facts", "step": 3})
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, TOKENIZER, OPTIMIZER, PROGRESS])
def test_damaged_bytes_never_raise_another_error(whole, name, data):
    folder, files = whole
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(0, 3))):
        # The head of a safetensors file is its beginning, and most of what can go wrong.
        place = data.draw(st.integers(0, min(len(content), 1500) - 1) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0159-"{}[],:eE.'))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    (folder / name).write_bytes(content)
    try:
        model, _ = load(folder)
        load_progress(folder, fastllm.Adam(model))
    except FormatError as error:
        assert "\n" not in str(error)  # noqa: PT017  # a damage may as well be none
    finally:
        (folder / name).write_bytes(files[name])


def test_what_load_would_refuse_is_not_saved(tiny_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="at most as many tokens as the model's vocab_size, 23"):
        fastllm.save(tmp_path / "other", tiny_model, fastllm.ByteTokenizer())
    tiny_model.add_lora(rank=2)
    optimizer = fastllm.AdamW(tiny_model)
    tiny_model.merge_adapter()
    with pytest.raises(ValueError, match="must be made for the model that is saved"):
        fastllm.save(tmp_path / "other", tiny_model, tokenizer, optimizer)
    assert not (tmp_path / "other").exists()
