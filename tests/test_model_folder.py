"""How a new folder of a model takes the place of one: nothing of anyone's is lost, whatever comes in between."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from saved_models import load

import fastllm
from fastllm import conversion
from fastllm.formats import model_folder, write_huggingface
from fastllm.formats.huggingface_folder import CONFIG, WEIGHTS
from fastllm.tokenizers import HuggingFaceTokenizer

ROOT = Path(__file__).parents[1]


def weights_of(path):
    return load(path)[0].parameters.flat.tobytes()


def write(folder, model, **options):
    write_huggingface(folder, model.config, model.parameters, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def theirs(tmp_path, tiny_model):
    """A folder as write_huggingface makes it."""
    write(tmp_path / "theirs", tiny_model)
    return tmp_path / "theirs"


SAVING = """
import sys
import fastllm
model, tokenizer = fastllm.load(sys.argv[1], backend="numpy")
model.parameters.flat.fill(float(sys.argv[2]))
for _ in range(150):
    fastllm.save(sys.argv[1], model, tokenizer)
"""


@pytest.mark.skipif(os.name != "posix", reason="folders can be locked on POSIX")
def test_two_processes_that_save_to_one_folder(saved):
    (saved / "notes.txt").write_text("mine")
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SAVING, saved, number],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ("1", "2")
    ]
    errors = [process.communicate()[1] for process in started]
    assert errors == ["", ""]
    assert set(load(saved)[0].parameters.flat) in ({1.0}, {2.0})
    assert (saved / "notes.txt").read_text() == "mine"
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_has_come_there_meanwhile_stays(tmp_path, tiny_model, is_folder):
    target = tmp_path / "target"

    def come(done, total):
        if is_folder:
            target.mkdir(exist_ok=True)
            (target / CONFIG).write_text("mine")
        else:
            target.write_text("mine")

    with pytest.raises(FileExistsError, match="target was free; got something there meanwhile"):
        write(target, tiny_model, progress=come)
    assert (target / CONFIG if is_folder else target).read_text() == "mine"
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("replace", [True, False])
def test_only_a_model_is_replaced_and_only_if_that_is_said(tmp_path, theirs, tiny_model, replace):
    (theirs / "notes.txt").write_text("mine")
    before = files(theirs)
    tiny_model.parameters.flat += 1
    if replace:
        write(theirs, tiny_model, replace=True)
        assert files(theirs)["notes.txt"] == before["notes.txt"]
        assert files(theirs)[WEIGHTS] != before[WEIGHTS]
    else:
        with pytest.raises(FileExistsError, match="theirs must be a new or an empty folder; got one with other files"):
            write(theirs, tiny_model)
        assert files(theirs) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "progress.json").write_text("mine")
    with pytest.raises(FileExistsError, match="other must be a new or an empty folder"):
        write(other, tiny_model, replace=replace)
    assert files(other) == {"progress.json": b"mine"}
    with pytest.raises(FileExistsError, match="got a file"):
        write(other / "progress.json", tiny_model, replace=replace)


def test_a_model_set_aside_by_a_killed_writer_is_not_written_over(theirs, tiny_model):
    before = files(theirs)
    theirs.rename(theirs.with_name(".theirs.old"))
    with pytest.raises(FileExistsError, match="theirs must be a new or an empty folder"):
        write(theirs, tiny_model)
    assert files(theirs) == before


@pytest.mark.skipif(os.name != "posix", reason="links to folders are POSIX's")
def test_a_model_set_aside_is_found_through_a_link(saved):
    before, link = weights_of(saved), saved.with_name("link")
    link.symlink_to(saved)
    saved.rename(saved.with_name(".model.old"))
    assert weights_of(link) == before


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), KeyboardInterrupt()], ids=["os", "key"])
def test_a_folder_without_weights_comes_back_too(theirs, tiny_model, monkeypatch, failure):
    """Which a killed writer's could not: nothing says that it was a model's."""
    (theirs / WEIGHTS).unlink()
    before, replace = files(theirs), os.replace

    def failing(source, target):
        if str(source).endswith(".work.tmp"):
            raise failure
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", failing)
        with pytest.raises(type(failure)):
            write(theirs, tiny_model, replace=True)
    assert files(theirs) == before
    assert os.listdir(theirs.parent) == ["theirs"]


def test_files_that_cannot_be_removed_are_no_failure(saved, tiny_model, tokenizer, monkeypatch):
    """As in another user's folder: the model is written, and the old one is left beside it, each time."""
    unlink = Path.unlink

    def refusing(path, missing_ok=False):
        if ".old" in str(path):
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    for number in (1, 2):
        tiny_model.parameters.flat += 1
        with pytest.warns(UserWarning, match=f"could be moved or removed; it is in .*model.kept-{number}"):
            fastllm.save(saved, tiny_model, tokenizer)
        assert weights_of(saved) == tiny_model.parameters.flat.tobytes()


@pytest.mark.parametrize("keeps", [True, False], ids=["mine too", "theirs alone"])
def test_all_that_transformers_and_peft_wrote_goes_with_their_model(tmp_path, ours, keeps):
    transformers = pytest.importorskip("transformers")
    config = fastllm.preset("nano", vocab_size=ours.vocab_size, width=8, hidden=12, layers=1, heads=2, context=16)
    model, folder = fastllm.Model(config, backend="numpy"), tmp_path / "model"
    fastllm.save(folder, model, ours)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    theirs.save_pretrained(folder)
    (folder / "chat_template.json").write_text('{"chat_template": "{{ old }}"}')
    assert load(folder)[1].chat_templates == theirs.chat_template
    notes = folder / "additional_chat_templates" / "notes.txt"
    if keeps:
        notes.write_text("mine")
    with pytest.raises(FileExistsError, match="with additional_chat_templates" if keeps else "--force replaces it"):
        conversion.check_target(folder, force=keeps)
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
                 "adapter_config.json", "adapter_model.safetensors"):  # fmt: skip
        (folder / name).write_text("{}")
    fastllm.save(folder, model, HuggingFaceTokenizer(ours.document, {"eos_token": ours.end_token}))
    assert (load(folder)[1].chat_template, load(folder)[1].chat_templates) == (None, {})
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template is None
    assert notes.is_file() == keeps
    written = {CONFIG, WEIGHTS, "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {*os.listdir(folder)} == written | ({notes.parent.name} if keeps else set())
    assert os.listdir(tmp_path) == ["model"]


def test_a_model_card_stays(saved, theirs):
    (theirs / "README.md").write_text("a card")
    conversion.write(conversion.load_source(saved), theirs, "f16", force=True)
    assert (theirs / "README.md").read_text() == "a card"
    assert model_folder.holds_config(theirs)
