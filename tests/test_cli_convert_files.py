"""fastllm convert and what stands at its target; wrong use, interruptions, full disks, large models."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("tokenizers")

from converting import LLAMA, byte_level, convert, own

import fastllm
from fastllm import atomic, conversion
from fastllm.cli.convert import size_text
from fastllm.formats import model_folder, open_model, write_gguf
from fastllm.formats.bytes_of_file import mapped_file
from fastllm.formats.gguf_file import read_gguf_file
from fastllm.parameters import Parameters
from fastllm.tokenizers import tokenizer_to_gguf


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_there_is_replaced_only_by_force(tmp_path, capsys):
    own(tmp_path / "ours", byte_level())
    for target in ("theirs", "model.gguf"):
        assert convert(tmp_path / "ours", tmp_path / target) == 0
        path = tmp_path / target
        before = files(path) if path.is_dir() else path.read_bytes()
        assert convert(tmp_path / "ours", path, "--type", "f16") == 1
        assert "--force replaces it" in capsys.readouterr().err
        assert before == (files(path) if path.is_dir() else path.read_bytes())
        assert convert(tmp_path / "ours", path, "--type", "f16", "--force") == 0
        assert conversion._kinds(open_model(path).weights) == {"F16"}
        assert convert(tmp_path / "ours", path, "--force") == 0
        assert before == (files(path) if path.is_dir() else path.read_bytes())
    assert sorted(os.listdir(tmp_path)) == ["model.gguf", "ours", "theirs"]


@pytest.mark.parametrize("entry", ["notes.txt", "folder/", "checkpoint-5/", "optimizer.safetensors"])
def test_a_folder_with_something_else_is_never_replaced(entry, tmp_path, capsys):
    own(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "theirs") == 0
    if entry.endswith("/"):
        (tmp_path / "theirs" / entry).mkdir()
    else:
        (tmp_path / "theirs" / entry).write_text("mine")
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--force") == 1
    assert f"a folder with {entry.strip('/')}" in capsys.readouterr().err
    assert (tmp_path / "theirs" / entry).exists()


def test_odd_targets(tmp_path, capsys):
    own(tmp_path / "ours", byte_level())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("mine")
    (tmp_path / "folder.gguf").mkdir()
    for target, said in (("file", "got a file"), ("mine", "a folder with config.toml"), ("folder.gguf", "a folder")):
        assert convert(tmp_path / "ours", tmp_path / target, "--force") == 1
        assert said in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for target in ("empty", "new/deep/folder", "new/deep/model.GGUF"):
        assert convert(tmp_path / "ours", tmp_path / target) == 0
        assert fastllm.load(tmp_path / target, backend="numpy")


@pytest.mark.parametrize("target", ["file/model.gguf", "file/deep/folder"])
def test_a_target_in_a_file(target, tmp_path, capsys):
    own(tmp_path / "ours", byte_level())
    (tmp_path / "file").write_text("mine")
    assert convert(tmp_path / "ours", tmp_path / target) == 1
    assert "must be in a folder; got" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux")
@pytest.mark.parametrize("name", [b"caf\xe9.gguf", b"caf\xe9"])
def test_names_that_are_no_text(name, tmp_path):
    own(tmp_path / "ours", byte_level())
    target = tmp_path / os.fsdecode(name)
    assert convert(tmp_path / "ours", target) == 0
    assert fastllm.load(target, backend="numpy")


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({}, {"repetition_penalty": 1e300}, "repetition_penalty as a number from 1e-30 to 1e30; got 1e+300"),
        ({}, {"temperature": 1e-60}, "general.sampling.temp must fit into a float32; got 1e-60"),
        ({"rope_theta": 1e39}, {}, "rope.freq_base must fit into a float32"),
        ({"rms_norm_eps": 1e-60}, {}, "norm_eps must be a finite number > 0, as a float32 too; got 1e-60"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e39}}, {}, "rope_scaling needs factor, a finite"),
    ],
)
def test_numbers_that_a_gguf_file_has_no_room_for(fields, options, said, tmp_path, capsys):
    """What is there already stays."""
    own(tmp_path / "ours", byte_level())
    assert convert(tmp_path / "ours", tmp_path / "model.gguf") == 0
    before = (tmp_path / "model.gguf").read_bytes()
    for name, changes in (("config.json", fields), ("generation_config.json", {"do_sample": True, **options})):
        path = tmp_path / "ours" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert convert(tmp_path / "ours", tmp_path / "model.gguf", "--force") == 1
    assert said in capsys.readouterr().err
    assert (tmp_path / "model.gguf").read_bytes() == before


def test_top_k_beyond_the_vocabulary_is_all_of_it(tmp_path):
    model, tokenizer = own(tmp_path / "ours", byte_level())
    model.generation_options = {"top_k": 1 << 40}
    conversion.write(conversion.source_of(model, tokenizer), tmp_path / "model.gguf")
    again, _ = fastllm.load(tmp_path / "model.gguf", backend="numpy")
    assert again.generation_options["top_k"] == model.config.vocab_size


def test_an_adapter_counts_without_a_tokenizer_too(tmp_path):
    """Of a folder that holds a model and an adapter, as of others."""
    model, _ = own(tmp_path / "ours", byte_level())
    model, _ = fastllm.load(tmp_path / "ours", backend="numpy")
    noise = np.random.default_rng(0).standard_normal(model.add_lora(rank=2).flat.shape, dtype=np.float32)
    model.adapter.flat += noise
    fastllm.save_adapter(tmp_path / "adapter", model)
    shutil.copytree(tmp_path / "ours", tmp_path / "adapter", dirs_exist_ok=True)
    assert convert(tmp_path / "adapter", tmp_path / "one.gguf") == 0
    assert convert(tmp_path / "adapter", tmp_path / "other.gguf", "--no-tokenizer") == 0
    one, other = (read_gguf_file(tmp_path / f"{name}.gguf").tensors for name in ("one", "other"))
    assert all(tensor.data.tobytes() == other[name].data.tobytes() for name, tensor in one.items())


def test_wrong_use(tmp_path, capsys):
    own(tmp_path / "ours", byte_level())
    assert convert(tmp_path / "ours", tmp_path / "ours", "--force") == 2
    assert "must be different" in capsys.readouterr().err
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--type", "q8_0") == 2
    assert "name a file that ends in .gguf" in capsys.readouterr().err
    for words in (["--type", "f8"], ["--type", "q4_0"]):
        with pytest.raises(SystemExit) as end:
            convert(tmp_path / "ours", tmp_path / "model.gguf", *words)
        assert end.value.code == 2
    assert convert(tmp_path / "nothing", tmp_path / "theirs") == 1
    assert convert(tmp_path / "nothing", tmp_path / "theirs", "--no-tokenizer") == 1
    assert "there must be a model at" in capsys.readouterr().err
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    assert convert(tmp_path / "bad.gguf", tmp_path / "theirs", "--no-tokenizer") == 1
    assert "GGUF must be of version" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["bad.gguf", "ours"]


@pytest.mark.parametrize("target", ["theirs", "model.gguf"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_what_was_there(target, failure, tmp_path):
    model, tokenizer = own(tmp_path / "ours", byte_level())
    assert convert(tmp_path / "ours", tmp_path / target) == 0
    path = tmp_path / target
    before = files(path) if path.is_dir() else path.read_bytes()

    def interrupt(done, total):
        if done > total / 2:
            raise failure

    for there in (True, False):
        with pytest.raises(failure):
            conversion.write(conversion.source_of(model, tokenizer), path, "f16", force=True, progress=interrupt)
        if there:
            assert before == (files(path) if path.is_dir() else path.read_bytes())
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert os.listdir(tmp_path) == ["ours"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("target", ["theirs", "model.gguf"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_who_is_ended_leaves_nothing_half_written(name, target, tmp_path, monkeypatch):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    own(tmp_path / "ours", byte_level())
    written = []

    def flush(path):
        written.append(path.stat().st_size)
        signal.raise_signal(number)

    monkeypatch.setattr(atomic, "flush", flush)
    with pytest.raises(SystemExit) as end:
        convert(tmp_path / "ours", tmp_path / target)
    assert end.value.code == 128 + number
    assert signal.signal(number, before) is signal.SIG_DFL
    assert written
    assert os.listdir(tmp_path) == ["ours"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_half_written_files_are_removed_though_sighup_comes_twice(tmp_path, monkeypatch):
    """As it does where a terminal is closed: the second comes while the files are removed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    own(tmp_path / "ours", byte_level())
    remove = shutil.rmtree

    def flush(path):
        signal.raise_signal(signal.SIGHUP)

    def again(path, **options):
        if tmp_path in Path(path).parents:
            assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL  # which would end this process
            signal.raise_signal(signal.SIGHUP)
        remove(path, **options)

    monkeypatch.setattr(model_folder, "flush", flush)
    monkeypatch.setattr(shutil, "rmtree", again)
    try:
        with pytest.raises(SystemExit) as end:
            convert(tmp_path / "ours", tmp_path / "theirs")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end.value.code == 128 + signal.SIGHUP
    assert os.listdir(tmp_path) == ["ours"]


def in_two_files(folder):
    """The same model, in two files with an index."""
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    names, weight_map = sorted(arrays), {}
    for number in range(2):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        part = {name: arrays[name] for name in names[number::2]}
        safetensors.numpy.save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_folder_is_old_or_new_whenever_it_is_killed(renames, shards, tmp_path, monkeypatch, capsys):
    """Around the renames; in between, the old one is put back by who looks for it."""
    own(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "theirs") == 0
    if shards:
        in_two_files(tmp_path / "theirs")

    class Killed(BaseException):
        """Nothing is cleaned up after it."""

    replace, calls = os.replace, []

    def dying(source, target):
        if "theirs" in str(target) and not os.path.isfile(source) and ".work.tmp" not in str(target):
            if len(calls) == renames:
                monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
                monkeypatch.setattr("os.replace", lambda *_: None)
                raise Killed
            calls.append(target)
        return replace(source, target)

    monkeypatch.setattr("os.replace", dying)
    try:
        convert(tmp_path / "ours", tmp_path / "theirs", "--type", "f16", "--force")
    except Killed:
        assert renames < 2
    monkeypatch.undo()
    monkeypatch.setattr(atomic, "_token", "another process")
    if shards:
        assert convert(tmp_path / "ours", tmp_path / "theirs") == 1
        assert "--force replaces it" in capsys.readouterr().err
    model, _ = fastllm.load(tmp_path / "theirs", backend="numpy")
    assert conversion._kinds(conversion._weights(model)) == ({"F16"} if renames == 2 else {"F32"})
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--type", "f16", "--force") == 0
    assert sorted(os.listdir(tmp_path)) == ["ours", "theirs"]  # what the killed one left is gone


@pytest.mark.parametrize("target", ["theirs", "model.gguf"])
def test_what_killed_processes_left_goes(target, tmp_path):
    """And nothing that one at work needs, or that is only called alike."""
    own(tmp_path / "ours", byte_level())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, elsewhere = atomic._place, "0123abcd"
    me, other = os.getpid(), os.getppid()
    goes = [f"{here}-{dead.pid}-012345-0", f"{here}-{me}-012345-0", f"{elsewhere}-1-012345-7"]
    stays = [f"{here}-{other}-012345-0", f"{here}-{me}-{atomic._token}-99999", f"{elsewhere}-1-012345-8"]
    for owner in (*goes, *stays):
        (tmp_path / f".{target}.{owner}.work.tmp").mkdir()
        (tmp_path / f".{target}.{owner}.work.tmp" / "half").write_text("half")
    two_days_ago = time.time() - 48 * 3600
    os.utime(tmp_path / f".{target}.{goes[-1]}.work.tmp", (two_days_ago, two_days_ago))
    (tmp_path / f".{target}.mine.work.tmp").mkdir()
    (tmp_path / f".{target}.{dead.pid}.new").mkdir()
    for words in ([], ["--force"]):
        assert convert(tmp_path / "ours", tmp_path / target, *words) == 0
    left = {path.name for path in tmp_path.iterdir()} - {"ours", target}
    assert left == {f".{target}.{owner}.work.tmp" for owner in (*stays, "mine")} | {f".{target}.{dead.pid}.new"}


def test_a_new_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    own(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "theirs") == 0
    before, replace = files(tmp_path / "theirs"), os.replace

    def refusing(source, target):
        if ".work.tmp" in str(source) and ".work.tmp" not in str(target):
            raise PermissionError(13, "Permission denied")
        return replace(source, target)

    monkeypatch.setattr("os.replace", refusing)
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--type", "f16", "--force") == 1
    assert "what was there before is untouched" in capsys.readouterr().err
    assert files(tmp_path / "theirs") == before
    assert sorted(os.listdir(tmp_path)) == ["ours", "theirs"]


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX's")
@pytest.mark.parametrize("target", ["theirs", "model.gguf"])
def test_a_full_disk(target, tmp_path, capsys):
    import resource

    own(tmp_path / "ours", byte_level())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert convert(tmp_path / "ours", tmp_path / target) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert f"{target} could not be written" in said
    assert "what was there before is untouched" in said
    assert os.listdir(tmp_path) == ["ours"]


# Large models


@pytest.mark.parametrize("target", ["theirs", "model.gguf"])
def test_weights_of_a_file_are_never_in_memory_as_a_whole(target, tmp_path, capsys, monkeypatch):
    config = fastllm.ModelConfig(vocab_size=64, width=1024, hidden=2048, layers=3, heads=4, context=16, **LLAMA)
    parameters = Parameters(config)
    write_gguf(tmp_path / "large.gguf", config, parameters, "F16", tokenizer_to_gguf(byte_level(64)))
    size = os.path.getsize(tmp_path / "large.gguf")
    assert size > 50e6
    del parameters
    monkeypatch.setattr("fastllm.cli.convert.LARGE", 1 << 20)
    tracemalloc.start()
    try:
        assert convert(tmp_path / "large.gguf", tmp_path / target, "--type", "f32") == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16e6, f"{peak / 1e6:.0f} MB for {size / 1e6:.0f} MB"
    lines = capsys.readouterr().err.splitlines()
    assert 5 < len(lines) < 20
    total = size_text(2 * size).split(".")[0]
    assert f"{total}." in lines[-1]


def test_pages_of_the_file_leave_the_memory(tmp_path, monkeypatch):
    model, tokenizer = own(tmp_path / "ours", byte_level())
    conversion.write(conversion.source_of(model, tokenizer), tmp_path / "model.gguf")
    opened = open_model(tmp_path / "model.gguf")
    file = mapped_file(opened.weights["blocks.0.attention.query.weight"].data)
    assert file is not None
    assert mapped_file(model.parameters.flat) is None
    monkeypatch.setattr(conversion, "PAGES_KEPT", 1)  # after each piece
    source = conversion.load_source(tmp_path / "model.gguf")
    conversion.write(source, tmp_path / "again.gguf")
    one, other = (read_gguf_file(tmp_path / f"{name}.gguf").tensors for name in ("model", "again"))
    assert all(tensor.data.tobytes() == other[name].data.tobytes() for name, tensor in one.items())


@pytest.mark.parametrize(("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")])
def test_sizes_for_people(size, text):
    assert size_text(size) == text
