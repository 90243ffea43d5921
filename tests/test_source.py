"""What a job tells of its data: what is left out, what the vocabulary lacks, what was not read."""

import json
import zlib

import pytest
from training_jobs import Recorder, make_job, write_lines

import fastllm
from fastllm import cli
from fastllm.cli.eval import measure
from fastllm.cli.train import _usual_tokenizer
from fastllm.errors import DataError
from fastllm.training.job import Job

WORDS = "the sun is a star and the sea is blue "


def text_job(folder, data, **changes):
    phase = {"name": "a", "data": str(data), "steps": 2, "rows_per_update": 2, "learning_rate": 1e-3}
    return make_job(folder, phases=[{**phase, **changes.pop("phase", {})}], **changes)


@pytest.fixture
def known(tmp_path):
    """A run that knows these words alone."""
    (tmp_path / "known.txt").write_text(WORDS * 20, encoding="utf-8")
    job = Job.start(tmp_path / "known", text_job(tmp_path, tmp_path / "known.txt", tokenizer={"type": "word"}))
    job.train(Recorder())
    return tmp_path / "known"


def tune(folder, known, data, **phase):
    return Job.start(folder / "run", text_job(folder, data, model={"path": str(known)}, phase=phase))


def test_new_words_are_no_targets_and_are_told(tmp_path, known):
    (tmp_path / "new.txt").write_text("the moon is a star and the sea is deep " * 20, encoding="utf-8")
    job = tune(tmp_path, known, tmp_path / "new.txt")
    (note,) = job.notes
    assert note.startswith("40 of 200 tokens of ") and "(20.0%) are not in the vocabulary" in note
    batch, unknown = job.phases[0].dataset.batch(0), job.tokenizer.unknown_id
    assert unknown in batch.tokens and unknown not in batch.targets and -1 in batch.targets
    assert unknown not in next(job.phases[0].validation.in_order()).targets
    job.train(Recorder())


def test_new_words_of_records(tmp_path):
    records = [{"messages": [{"role": "user", "content": "is it a star"}, {"role": "assistant", "content": "no"}]}]
    data = write_lines(tmp_path / "a.jsonl", records)
    Job.start(tmp_path / "first", text_job(tmp_path, data, tokenizer={"type": "word"})).train(Recorder())
    records[0]["messages"][1]["content"] = "no sun"
    job = tune(tmp_path, tmp_path / "first", write_lines(tmp_path / "b.jsonl", records))
    assert any("1 of 8 tokens of" in note for note in job.notes)
    batch = job.phases[0].dataset.batch(0)
    end = job.tokenizer.end_id
    assert batch.targets[batch.targets >= 0].tolist() == [*job.tokenizer.encode("no"), end]


def test_a_run_whose_unknown_words_were_targets_is_not_gone_on_with(tmp_path, known):
    """As runs of the first version were: other targets would follow."""
    (tmp_path / "new.txt").write_text("the moon is a star and the sea is deep " * 20, encoding="utf-8")
    job = tune(tmp_path, known, tmp_path / "new.txt")
    job._checksums = [zlib.crc32((tmp_path / "new.txt").read_bytes())]  # as it was then
    job.train(Recorder())
    with pytest.raises(DataError, match="is read in another way than by the version that began it"):
        Job.resume(tmp_path / "run")


def test_a_last_tenth_of_unknown_words(tmp_path):
    (tmp_path / "text.txt").write_text(WORDS * 2 + "zebra yak", encoding="utf-8")
    config = text_job(tmp_path, tmp_path / "text.txt", tokenizer={"type": "word", "minimum_count": 2})
    job = Job.start(tmp_path / "run", config)
    assert job.phases[0].validation is None
    job.train(Recorder())


def test_validation_of_new_words_alone(tmp_path):
    for name, text in ("text.txt", WORDS * 20), ("other.txt", "never seen before"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    phase = {"validation": str(tmp_path / "other.txt")}
    with pytest.raises(DataError, match=r"other\.txt: a text must hold tokens of the vocabulary"):
        Job.start(tmp_path / "run", text_job(tmp_path, tmp_path / "text.txt", tokenizer={"type": "word"}, phase=phase))


def test_a_text_of_new_words_alone(tmp_path, known):
    (tmp_path / "new.txt").write_text("all of these words were never seen " * 9, encoding="utf-8")
    with pytest.raises(DataError, match="must hold tokens of the vocabulary; got none"):
        tune(tmp_path, known, tmp_path / "new.txt")
    assert not (tmp_path / "run").exists()


def test_batches_have_targets_where_most_of_a_text_is_unknown(tmp_path, known):
    (tmp_path / "new.txt").write_text("x " * 4000 + WORDS * 10, encoding="utf-8")
    job = tune(tmp_path, known, tmp_path / "new.txt", validation=str(tmp_path / "known.txt"), rows_per_update=1)
    dataset = job.phases[0].dataset
    batches = [dataset.batch(step) for step in range(100)]
    assert all(batch.target_count for batch in batches)
    assert (dataset.batch(7).tokens == batches[7].tokens).all()


def test_words_that_a_vocabulary_has_no_room_for(tmp_path):
    (tmp_path / "text.txt").write_text(WORDS * 20, encoding="utf-8")
    job = Job.start(
        tmp_path / "run", text_job(tmp_path, tmp_path / "text.txt", tokenizer={"type": "word", "max_size": 8})
    )
    assert any("are not in the vocabulary" in note for note in job.notes)
    assert (job.phases[0].dataset.batch(0).targets != job.tokenizer.unknown_id).all()


def test_eval_says_what_it_leaves_out(tmp_path, known, capsys):
    (tmp_path / "new.txt").write_text("the moon is a star and the sea is deep " * 20, encoding="utf-8")
    assert cli.main(["eval", str(known), str(tmp_path / "new.txt"), "--backend", "numpy"]) == 0
    assert "unknown     39 tokens" in capsys.readouterr().out
    assert cli.main(["eval", str(known), str(tmp_path / "new.txt"), "--backend", "numpy", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["unknown_tokens"], figures["targets"]) == (39, 199 - 40)  # the last one is a target alone


def test_answers_that_do_not_fit_are_told(tmp_path):
    turn = [{"role": "user", "content": "is it blue"}, {"role": "assistant", "content": "yes it is"}]
    data = write_lines(tmp_path / "a.jsonl", [{"messages": turn * 5}, {"messages": turn}, {"messages": turn * 2}])
    job = Job.start(tmp_path / "run", text_job(tmp_path, data, tokenizer={"type": "word"}))
    (note,) = job.notes  # 9 tokens a turn, a context of 16
    assert note.startswith("5 earlier answers of 2 dialogues of") and "has more tokens than the context 16" in note


def test_a_record_that_a_layout_refuses_is_named(tmp_path):
    turn = [{"role": "user", "content": "is it blue"}, {"role": "assistant", "content": "yes"}]
    data = write_lines(tmp_path / "a.jsonl", [{"messages": turn}, {"system": "Be brief", "messages": turn}])
    with pytest.raises(DataError, match=r"a\.jsonl, record 2: without a chat template, .* got system as message 1"):
        Job.start(tmp_path / "run", text_job(tmp_path, data))


def test_control_tokens_in_texts_are_told(tmp_path):
    (tmp_path / "a.txt").write_text("<user>is it<assistant>yes<end>" * 9, encoding="utf-8")
    job = Job.start(tmp_path / "run", text_job(tmp_path, tmp_path / "a.txt"))
    assert any(note.startswith("27 texts of control tokens") and "such as <user>, left" in note for note in job.notes)
    data = write_lines(tmp_path / "a.jsonl", [{"text": "one<end>"}, {"text": "two"}])
    job = Job.start(tmp_path / "second", text_job(tmp_path, data))
    assert any(note.startswith("1 text of control tokens") for note in job.notes)


def test_what_a_folder_gives_is_told(tmp_path):
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    for name in ("a.txt", ".hidden.txt", ".git/b.txt"):
        (folder / name).write_text(WORDS * 3, encoding="utf-8")
    write_lines(folder / "c.jsonl", [{"text": "one"}])
    job = Job.start(tmp_path / "run", text_job(tmp_path, folder))
    (note,) = job.notes
    assert f"1 text file, {len(WORDS) * 3} characters; 1 file of JSON not read" in note


def test_records_under_the_name_of_a_text(tmp_path, known):
    record = json.dumps({"text": "the sun " * 9})
    (tmp_path / "folder").mkdir()
    for name, content, advice in (
        ("a.txt", f"{record}\n{record}\n", ".jsonl"),
        ("b.json.txt", f"\n\n  {record}\n{record}\n", ".jsonl"),
        ("c.txt", f"[\n  {record},\n  {record}]", ".json"),
        ("folder/d.txt", record, ".jsonl"),
    ):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        for given in {path, path.parent} - {tmp_path}:
            advised = rf"{path.name} must hold plain text, .*; give them in a file called \*{advice}$"
            with pytest.raises(DataError, match=advised):
                Job.start(tmp_path / "run", text_job(tmp_path, given))
            with pytest.raises(DataError, match=rf"{path.name} must hold plain text"):
                measure(*fastllm.load(known, backend="numpy"), given)
    for content in '{"name": "no record"}\n' * 9, "{ a brace " * 9, "[1, 2, 3]\n" * 9:
        (tmp_path / "e.txt").write_text(content, encoding="utf-8")
        Job.start(tmp_path / "run", text_job(tmp_path, tmp_path / "e.txt")).run.discard()


def test_a_run_goes_on_with_what_a_new_one_refuses(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 40 + WORDS * 3, encoding="utf-8")
    job = Job.start(tmp_path / "run", text_job(tmp_path, tmp_path / "a.txt", tokenizer={"type": "byte"}))
    content = json.dumps({"text": WORDS}) + "\n"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    job._checksums = [zlib.crc32(content.encode())]
    job.train(Recorder())
    assert Job.resume(tmp_path / "run").is_done


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.json"])
def test_a_folder_with_the_name_of_records(tmp_path, name, known):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text(WORDS * 9, encoding="utf-8")
    Job.start(tmp_path / "run", text_job(tmp_path, tmp_path / name))
    assert measure(*fastllm.load(known, backend="numpy"), tmp_path / name)["targets"]
    assert _usual_tokenizer(str(tmp_path / name)) == "character"


def test_a_text_of_a_long_name(tmp_path):
    path = tmp_path / ("世界" * 40 + ".txt")
    path.write_text(WORDS * 9, encoding="utf-8")
    job = Job.start(tmp_path / "run", text_job(tmp_path, path))
    assert job.phases[0].dataset.tokens.size


def test_texts_of_the_same_name_in_different_folders(tmp_path):
    phases = []
    for name, text in (("a", WORDS), ("b", "bees make honey ")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text * 20, encoding="utf-8")
        data = str(tmp_path / name / "text.txt")
        phases.append({"name": name, "data": data, "steps": 2, "learning_rate": 1e-3})
    config = make_job(tmp_path, phases=phases, tokenizer={"type": "word"})
    one, other = Job.start(tmp_path / "run", config).phases
    assert not set(one.dataset.tokens) & set(other.dataset.tokens)
    assert len(list((tmp_path / "run").glob("text-*"))) == 2  # a mapped file can't be replaced everywhere


@pytest.mark.parametrize("length", [5, 999])
def test_sequences_are_as_long_as_asked_for_and_at_most_the_context(tmp_path, length):
    (tmp_path / "text.txt").write_text(WORDS * 20, encoding="utf-8")
    data = write_lines(tmp_path / "a.jsonl", [{"text": "the sun"}] * 5)
    asked = {"sequence_length": length}
    text = Job.start(tmp_path / "text", text_job(tmp_path, tmp_path / "text.txt", phase=asked))
    joined = Job.start(tmp_path / "joined", text_job(tmp_path, data, phase={**asked, "join": True}))
    most = min(length, text.model.config.context)
    assert text.phases[0].dataset.length == joined.phases[0].dataset.join == most


@pytest.mark.parametrize(
    ("answers", "kind"),
    [(["Es regnet.", "Ja."], "word"), (["今天下雨。", "是的。"], "character"), (["ฝนตก", "ใช่"], "character"),
     (["비가 온다.", "네."], "word"), (["A new word is 新.", "Ja."], "word")],
)  # fmt: skip
def test_the_usual_tokenizer_is_one_for_the_language(tmp_path, answers, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [
        {"messages": [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    write_lines(tmp_path / "a.jsonl", records)
    assert _usual_tokenizer("a.jsonl") == kind


def test_shipped_data_by_its_name(monkeypatch):
    """As it is, not in the folder that one happens to be in."""
    started = []

    class Stopped(Exception):
        pass

    def start(folder, config):
        started.append(config)
        raise Stopped

    monkeypatch.setattr(Job, "start", start)
    with pytest.raises(Stopped):
        cli.main(["train", "fastllm:zh/dialogues.jsonl", "--validation", "fastllm:zh/validation.jsonl"])
    [config] = started
    assert config.tokenizer.type == "character"
    [phase] = config.phases
    assert (phase.data, phase.validation) == ("fastllm:zh/dialogues.jsonl", "fastllm:zh/validation.jsonl")


def test_a_run_without_a_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("seed = 1\n")
    with pytest.raises(fastllm.errors.FormatError, match=r"has no checkpoint yet; train it first: .*--resume"):
        fastllm.load(tmp_path / "run")
    (tmp_path / "run" / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere/at/all"}')
    with pytest.raises(fastllm.errors.FormatError, match="must name its base model"):
        fastllm.load(tmp_path / "run")  # another project's, which has a config.toml of its own
