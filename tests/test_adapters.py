"""Adapters in PEFT's files: PEFT's own numbers both ways, every rule of its configuration."""

import dataclasses
import json
import shutil

import huggingface_models
import numpy as np
import pytest
import safetensors.numpy
from model_switches import make_model
from tiny_adapters import (
    CONFIG,
    CONFIGS,
    GPT2,
    LLAMA,
    OURS,
    TOLERANCE,
    WEIGHTS,
    assert_same_changes,
    changes_of,
    filled,
    rewrite,
    rewrite_weights,
    write,
)

import fastllm
from fastllm import adapters
from fastllm.adapters import read_adapter, write_adapter
from fastllm.checkpoint import load_progress, save_tuned
from fastllm.errors import FormatError
from fastllm.formats import open_model
from fastllm.lora import AdapterParameters, Addition, LoRAConfig, additions_of, linear_maps
from fastllm.parameters import shapes_of
from fastllm.quantize import quantize

# Against PEFT


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("transformers")
    return pytest.importorskip("peft")


# PEFT asks transformers 5 in an older way.
against_peft = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens[None])).logits[0].numpy()


THEIRS = {
    "llama": {"target_modules": ["q_proj", "v_proj"]},
    "llama-tied-biases": {"target_modules": "all-linear", "use_rslora": True},
    "mistral": {
        "target_modules": r".*\.(q_proj|k_proj|down_proj)$",
        "rank_pattern": {r"layers\.1\.self_attn\.k_proj": 2, "down_proj": 5},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 7, r"self_attn\.k_proj": 1.5},
    },
    "qwen3": {"target_modules": ["k_proj", "self_attn.q_proj", "up_proj"], "layers_to_transform": [1]},
    "qwen2": {"target_modules": ["o_proj", "gate_proj"], "layers_to_transform": 0, "layers_pattern": "layers",
              "exclude_modules": ["gate_proj"]},
    "gpt2": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    "gpt2-untied": {"target_modules": ["c_proj", "c_attn", "mlp.c_fc"], "fan_in_fan_out": True,
                    "rank_pattern": {"attn.c_proj": 6}},
}  # fmt: skip


@against_peft
@pytest.mark.parametrize("name", THEIRS)
def test_an_adapter_of_theirs(peft, tmp_path, name, rng):
    """Saved by PEFT, the base by transformers: opened by its base's path, on the base opened before, and merged."""
    import torch

    base = huggingface_models.make(name)
    base.save_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **THEIRS[name])).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "adapter")
    tokens = rng.integers(0, huggingface_models.VOCABULARY, 20)
    expected = their_logits(theirs, tokens)

    opened = open_model(tmp_path / "base")
    model = fastllm.Model(opened.config, weights=opened.weights)
    plain = model.forward(tokens)
    adapter = fastllm.load_adapter(model, tmp_path / "adapter")
    assert model.adapter is adapter
    logits = model.forward(tokens)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    assert np.abs(logits - plain).max() > 0.1
    model.merge_adapter()
    np.testing.assert_allclose(model.forward(tokens), expected, atol=TOLERANCE)


OUR_ADDITIONS = {
    "all": lambda config: additions_of(config, LoRAConfig(rank=3, alpha=5)),
    "query and value": lambda config: additions_of(config, LoRAConfig(rank=8, targets=("query", "value"))),
    "stable": lambda config: additions_of(config, LoRAConfig(rank=5, targets=("down", "output"), rank_stabilized=True)),
    "of all sorts": lambda config: {
        name: Addition(1 + i % 5, 0.3 + i % 3) for i, name in enumerate(linear_maps(config)) if i % 4 != 1
    },
    "one": lambda config: {"blocks.1.attention.key": Addition(2, 0.7)},
}


@pytest.mark.parametrize("additions", OUR_ADDITIONS.values(), ids=OUR_ADDITIONS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@against_peft
def test_an_adapter_of_ours(peft, tmp_path, name, additions, rng):
    """PEFT opens it on the same base and computes the same."""
    base = huggingface_models.make(name)
    base.save_pretrained(tmp_path / "base")
    opened = open_model(tmp_path / "base")
    model = fastllm.Model(opened.config, weights=opened.weights)
    tokens = rng.integers(0, huggingface_models.VOCABULARY, 20)
    plain = model.forward(tokens)
    adapter = filled(model.config, additions(model.config))
    adapter.flat *= 0.3
    model.set_adapter(adapter)
    fastllm.save_adapter(tmp_path / "adapter", model, tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = their_logits(theirs, tokens)
    np.testing.assert_allclose(model.forward(tokens), expected, atol=TOLERANCE)
    assert np.abs(expected - plain).max() > 0.05


@against_peft
def test_rows_for_rope_on_pairs(peft, tmp_path, rng):
    """As GGUF has Llama: rows of query and key stand elsewhere, in the base and in the adapter."""
    from fastllm.formats.rows import row_order

    base = huggingface_models.make("llama")
    base.save_pretrained(tmp_path / "base")
    opened = open_model(tmp_path / "base")
    halves = fastllm.Model(opened.config, weights=opened.weights)
    config = dataclasses.replace(opened.config, rope_interleaved=True)
    pairs = fastllm.Model(config)
    for name, view in pairs.parameters.items():
        order = row_order(opened.config, name, len(view), interleaved=True)
        view[...] = halves.parameters[name] if order is None else halves.parameters[name][order]
    tokens = rng.integers(0, huggingface_models.VOCABULARY, 20)
    np.testing.assert_allclose(pairs.forward(tokens), halves.forward(tokens), atol=TOLERANCE)
    adapter = filled(config, additions_of(config, LoRAConfig(rank=3)))
    adapter.flat *= 0.3
    pairs.set_adapter(adapter)
    fastllm.save_adapter(tmp_path / "adapter", pairs)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = their_logits(theirs, tokens)
    np.testing.assert_allclose(pairs.forward(tokens), expected, atol=TOLERANCE)
    fastllm.load_adapter(halves, tmp_path / "adapter")
    np.testing.assert_allclose(halves.forward(tokens), expected, atol=TOLERANCE)
    loaded = fastllm.load_adapter(pairs, tmp_path / "adapter")
    np.testing.assert_array_equal(loaded.flat, adapter.flat)


# There and back


@pytest.mark.parametrize("additions", OUR_ADDITIONS.values(), ids=OUR_ADDITIONS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back(tmp_path, config, additions):
    adapter = filled(config, {name: a for name, a in additions(config).items() if name in linear_maps(config)})
    write_adapter(tmp_path, config, adapter, None)
    loaded = read_adapter(config, tmp_path)
    assert_same_changes(changes_of(loaded), changes_of(adapter))
    assert {name: a.rank for name, a in loaded.additions.items()} == {n: a.rank for n, a in adapter.additions.items()}
    # and with what it adds known, to the bit
    again = read_adapter(config, tmp_path, adapter.additions)
    assert again.additions == adapter.additions
    if len({addition.scale for addition in adapter.additions.values()}) == 1:
        assert again.flat.tobytes() == adapter.flat.tobytes()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_adapter_that_has_not_learnt_yet(tmp_path, config):
    """b is 0, so that the columns of GPT-2's joint B can't be told apart by what they affect."""
    adapter = AdapterParameters(config, additions_of(config, LoRAConfig(rank=3, targets=("query", "value", "up"))))
    adapter.initialise(4)
    write_adapter(tmp_path, config, adapter, None)
    loaded = read_adapter(config, tmp_path)
    assert not any(change.any() for change in changes_of(loaded).values())
    assert read_adapter(config, tmp_path, adapter.additions).flat.tobytes() == adapter.flat.tobytes()


def test_a_fused_adapter_of_full_rank_is_copied(tmp_path):
    """A column of B that reaches query and key stays with both."""
    write(tmp_path, GPT2, LoRAConfig(rank=3, targets=("query", "key", "value")))
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    rewrite_weights(tmp_path, lambda tensors: tensors[name].fill(0.5))
    loaded = read_adapter(GPT2, tmp_path)
    ranks = [loaded.additions[f"blocks.{layer}.attention.{name}"].rank for layer in (0, 1) for name in ("query", "key")]
    assert ranks == [9, 9, 3, 3]
    tensors = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    whole = 2.0 * tensors[name] @ tensors[name.replace("lora_B", "lora_A")]
    parts = [loaded.change(f"blocks.0.attention.{name}") for name in ("query", "key", "value")]
    np.testing.assert_allclose(np.concatenate(parts), whole * (parts[0][0, 0] / whole[0, 0]), rtol=1e-5)


def test_files_of_ours(tmp_path):
    write(tmp_path / "llama", LLAMA, LoRAConfig(rank=8, targets=("query", "up")), "org/model")
    fields = json.loads((tmp_path / "llama" / CONFIG).read_text())
    expected = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/model", "r": 8, "lora_alpha": 16,
        "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["q_proj", "up_proj"], "fan_in_fan_out": False,
        "bias": "none", "use_rslora": False,
    }  # fmt: skip
    assert fields | expected == fields
    write(tmp_path / "gpt2", GPT2, LoRAConfig(rank=8, targets=("query", "value", "output")))
    fields = json.loads((tmp_path / "gpt2" / CONFIG).read_text())
    assert (fields["target_modules"], fields["fan_in_fan_out"]) == (["attn.c_proj", "c_attn"], True)
    assert (fields["r"], fields["rank_pattern"]) == (
        16, {f"transformer.h.{layer}.attn.c_proj": 8 for layer in (0, 1)}
    )  # fmt: skip
    write(tmp_path / "ours", OURS, LoRAConfig(rank=8, targets=("query",)))
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["target_modules"] == ["query"]
    assert "base_model.model.blocks.0.attention.query.lora_A.weight" in safetensors.numpy.load_file(
        tmp_path / "ours" / WEIGHTS
    )


def test_a_base_without_its_head(tmp_path):
    """Names of AutoModel's modules begin later."""
    adapter = write(tmp_path)
    rewrite_weights(tmp_path, lambda tensors: {n.replace("model.model.", "model."): t for n, t in tensors.items()})
    assert_same_changes(changes_of(read_adapter(LLAMA, tmp_path)), changes_of(adapter))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_of_other_types(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    adapter = write(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    halves = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    safetensors.torch.save_file(halves, tmp_path / WEIGHTS)
    loaded = read_adapter(LLAMA, tmp_path)
    name = "blocks.1.feed_forward.down"
    theirs = halves["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].float().numpy()
    np.testing.assert_array_equal(loaded[f"{name}.lora_a"], theirs)
    np.testing.assert_allclose(loaded.flat, adapter.flat, rtol=2e-2, atol=1e-3)


# Saving and setting


def test_save_and_load(tmp_path, rng):
    model, other = make_model(LLAMA, "numpy"), make_model(LLAMA, "numpy")
    model.add_lora(rank=2)
    model.adapter.flat[...] = rng.standard_normal(model.adapter.flat.size)
    fastllm.save_adapter(tmp_path / "new" / "adapter", model)
    adapter = fastllm.load_adapter(other, tmp_path / "new" / "adapter")
    assert other.adapter is adapter
    np.testing.assert_array_equal(adapter.flat, model.adapter.flat)
    np.testing.assert_array_equal(other.forward([1, 2, 3]), model.forward([1, 2, 3]))
    # in place of one that is there, in the model and on the disk
    model.remove_adapter()
    model.add_lora(rank=4)
    fastllm.save_adapter(str(tmp_path / "new" / "adapter"), model)
    assert fastllm.load_adapter(other, str(tmp_path / "new" / "adapter")).additions == model.adapter.additions
    assert sorted(path.name for path in (tmp_path / "new" / "adapter").iterdir()) == [CONFIG, WEIGHTS]


def test_a_model_without_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="needs a model with an adapter"):
        fastllm.save_adapter(tmp_path / "adapter", make_model(LLAMA, "numpy"))
    assert not (tmp_path / "adapter").exists()


def test_a_failing_write_leaves_the_old_adapter(tmp_path, monkeypatch):
    adapter = write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters, "write_safetensors", fail)
    with pytest.raises(OSError, match="No space left"):
        write_adapter(tmp_path, LLAMA, adapter, "other")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Opened by its folder


@pytest.fixture
def base(tmp_path, tiny_model, tokenizer):
    """A checkpoint, the adapter of a model opened from it, and that model's logits."""
    fastllm.save(tmp_path / "base", tiny_model, tokenizer)
    model, _ = fastllm.load(tmp_path / "base", backend="numpy")
    model.set_adapter(filled(model.config, additions_of(model.config, LoRAConfig(rank=2))))
    fastllm.save_adapter(tmp_path / "adapter", model)
    return tmp_path / "base", tmp_path / "adapter", model.forward([1, 2, 3])


def test_the_base_that_it_names_is_opened(base, tokenizer, tiny_model):
    folder, adapter, expected = base
    assert json.loads((adapter / CONFIG).read_text())["base_model_name_or_path"] == str(folder)
    model, opened = fastllm.load(adapter, backend="numpy")
    np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)
    assert opened.tokens == tokenizer.tokens
    assert (model.backend, model.origin) == ("numpy", str(folder))
    model.remove_adapter()
    np.testing.assert_array_equal(model.forward([1, 2, 3]), tiny_model.forward([1, 2, 3]))
    assert fastllm.load(folder, backend="numpy")[0].origin == str(folder)


def test_an_adapter_of_a_base_that_has_changed(base, tmp_path, tokenizer):
    folder, _, _ = base
    model, _ = fastllm.load(folder, backend="numpy")
    model.parameters["head.bias" if "head.bias" in model.parameters else "final_norm.weight"][...] += 1
    model.add_lora(rank=2)
    fastllm.save_adapter(tmp_path / "second", model)  # which names the model in the folder
    with pytest.warns(UserWarning, match="trained on .*, which has changed since"):
        fastllm.load(tmp_path / "second", backend="numpy")
    other, _ = fastllm.load(folder, backend="numpy")
    said = "second: the adapter was trained on other weights than this model's. It suits .* precision; if not, load"
    with pytest.warns(UserWarning, match=said):
        fastllm.load_adapter(other, tmp_path / "second")
    model.remove_adapter()
    fastllm.load_adapter(model, tmp_path / "second")  # which it was trained on: no warning
    save_tuned(tmp_path / "third", model, tokenizer)
    with pytest.warns(UserWarning, match="has changed since"):
        fastllm.load(tmp_path / "third", backend="numpy")


def test_a_base_that_has_been_copied_has_not_changed(rng):
    """checksum_of counts numbers, not how they are kept."""
    config = fastllm.preset("llama", vocab_size=64, layers=1, width=32, hidden=64, heads=2, kv_heads=2, context=16)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes_of(config).items()}
    packed = {name: quantize(array, "Q8_0") if array.ndim == 2 else array for name, array in weights.items()}
    model = fastllm.Model(config, backend="numpy", weights=packed)
    before = adapters.checksum_of(model)
    model.unfreeze()
    assert adapters.checksum_of(model) == before
    for row in (0, 16, 31):
        model.parameters["blocks.0.attention.query.weight"][row, 3] += 1
        assert adapters.checksum_of(model) != before
        model.parameters["blocks.0.attention.query.weight"][row, 3] -= 1


def test_a_merged_model_is_no_longer_its_origin(base, tmp_path):
    _, adapter, _ = base
    model, _ = fastllm.load(adapter, backend="numpy")
    model.merge_adapter()
    assert model.origin is None
    model.add_lora(rank=2)
    fastllm.save_adapter(tmp_path / "second", model)
    assert json.loads((tmp_path / "second" / CONFIG).read_text())["base_model_name_or_path"] is None


def test_a_base_beside_the_adapter(base, monkeypatch, tmp_path):
    """A relative path is relative to the adapter's folder, whatever the current folder is."""
    folder, adapter, expected = base
    rewrite(adapter, base_model_name_or_path="../base")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(fastllm.load(adapter, backend="numpy")[0].forward([1, 2, 3]), expected)
    # given relative to where one stands, it is written as an absolute one
    monkeypatch.chdir(tmp_path)
    model, _ = fastllm.load("adapter", backend="numpy")
    fastllm.save_adapter("another", model, "base")
    assert json.loads((tmp_path / "another" / CONFIG).read_text())["base_model_name_or_path"] == str(folder)
    # where both would do, the adapter's folder has it
    monkeypatch.chdir(adapter)
    fastllm.save_adapter("../another", model, "../base")
    assert json.loads((tmp_path / "another" / CONFIG).read_text())["base_model_name_or_path"] == "../base"


def test_a_run_folder_as_the_base_and_as_the_adapter(base, tmp_path):
    folder, adapter, expected = base
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "checkpoint")
    rewrite(adapter, base_model_name_or_path=str(tmp_path / "run"))
    (tmp_path / "tuned").mkdir()
    adapter.rename(tmp_path / "tuned" / "checkpoint")
    model, _ = fastllm.load(tmp_path / "tuned", backend="numpy")
    np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)
    other, _ = fastllm.load(tmp_path / "run", backend="numpy")
    fastllm.load_adapter(other, tmp_path / "tuned")
    np.testing.assert_array_equal(other.forward([1, 2, 3]), expected)


def test_names_on_the_hub(base, monkeypatch):
    folder, adapter, expected = base
    asked = []

    def download(name, needs_weights=True):
        assert needs_weights
        asked.append(name)
        return folder if name == "org/base" else adapter

    monkeypatch.setattr("fastllm.checkpoint.download", download)
    monkeypatch.setattr("fastllm.adapters.download", download)
    rewrite(adapter, base_model_name_or_path="org/base")
    model, _ = fastllm.load("org/adapter", backend="numpy")
    np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)
    assert asked == ["org/adapter", "org/base"]
    assert model.origin == "org/base"
    fastllm.load_adapter(model, "org/adapter")
    np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)


def test_a_tokenizer_of_its_own(base):
    _, adapter, _ = base
    fastllm.WordTokenizer.build(["other words"]).save_into(adapter)
    assert "other" in fastllm.load(adapter, backend="numpy")[1].tokens
    fastllm.WordTokenizer.build([" ".join(f"word{i}" for i in range(99))]).save_into(adapter)
    with pytest.raises(FormatError, match="a tokenizer must have at most as many tokens as the model"):
        fastllm.load(adapter, backend="numpy")


@pytest.mark.parametrize("name", ["base", "./base", "a/../base"])
def test_a_base_that_is_named_from_where_one_stands(base, monkeypatch, tmp_path, name):
    """As PEFT names it."""
    _, adapter, expected = base
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    rewrite(adapter, base_model_name_or_path=name)
    np.testing.assert_array_equal(fastllm.load(adapter, backend="numpy")[0].forward([1, 2, 3]), expected)


def test_an_adapter_is_not_saved_among_its_models_files(base):
    folder, adapter, _ = base
    model, _ = fastllm.load(adapter, backend="numpy")
    shutil.copytree(folder, folder.with_name("run") / "checkpoint")
    for place in (folder, folder.with_name("run") / "checkpoint", folder.with_name("run")):
        for named in (None, place, "org/model"):
            with pytest.raises(ValueError, match="an adapter needs a folder of its own; got"):
                fastllm.save_adapter(place, model, named)
    assert fastllm.load(folder, backend="numpy")[0].adapter is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "must name its base model in base_model_name_or_path; got None"),
        ("", "in base_model_name_or_path; got ''"),
        (3, "in base_model_name_or_path; got 3"),
        ("no/such/model/here", "got 'no/such/model/here', which is neither in"),
        ("x" * 5000, "which is neither in"),
        ("/dev/zero", "which is neither in"),
        ("../base/tokenizer.json", "must be a Hugging Face folder, a GGUF file or a llama2.c checkpoint"),
        ("\0", "in base_model_name_or_path; got"),
        ("\ud800", "which is neither in"),
        ("../adapter", "got '../adapter', which has one; merge that one first"),
        (".", "which has one"),
    ],
)
def test_wrong_bases(base, name, message):
    _, adapter, _ = base
    rewrite(adapter, base_model_name_or_path=name)
    with pytest.raises(FormatError, match=message) as caught:
        fastllm.load(adapter, backend="numpy")
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_a_model_with_an_adapter(base, tmp_path, tokenizer):
    """It is replaced as others are, and never by save, which holds whole models."""
    _, adapter, expected = base
    model, _ = fastllm.load(adapter, backend="numpy")
    with pytest.raises(ValueError, match="merge_adapter"):
        fastllm.save(tmp_path / "checkpoint", model, tokenizer)
    for _ in range(2):
        save_tuned(tmp_path / "checkpoint", model, tokenizer, fastllm.AdamW(model), {"step": 3})
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        CONFIG, WEIGHTS, "optimizer.safetensors", "progress.json", "tokenizer.json",
    ]  # fmt: skip
    again, opened = fastllm.load(tmp_path / "checkpoint", backend="numpy")
    np.testing.assert_array_equal(again.forward([1, 2, 3]), expected)
    assert opened.tokens == tokenizer.tokens
    optimizer = fastllm.AdamW(again)
    assert load_progress(tmp_path / "checkpoint", optimizer) == {"step": 3}
    again.merge_adapter()
    fastllm.save(tmp_path / "merged", again, opened)
    np.testing.assert_allclose(
        fastllm.load(tmp_path / "merged", backend="numpy")[0].forward([1, 2, 3]), expected, atol=TOLERANCE
    )
