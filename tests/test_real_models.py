"""Whole models, file to logits: transformers' and ours agree in every architecture, on the way in and out."""

import dataclasses

import huggingface_models as models
import numpy as np
import pytest

import fastllm
from fastllm.formats import open_model, write_gguf
from fastllm.formats.huggingface import to_huggingface
from fastllm.quantize import dequantize

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

TOKENS = np.random.default_rng(0).integers(0, models.VOCABULARY, (2, 20))
TOLERANCE = 1e-4  # of logits, which are of size 1 to 10 here


def theirs(model):
    """Logits (2, 20, V) of TOKENS."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(TOKENS)).logits.float().numpy()


def assert_close(got, expected, tolerance=TOLERANCE):
    assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.fixture(params=models.CASES)
def saved(request, tmp_path):
    """A model of theirs and its folder."""
    model = models.make(request.param)
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs"


def opened_model(path, backend="numba"):
    opened = open_model(path)
    return fastllm.Model(opened.config, backend=backend, weights=opened.weights)


def test_logits_of_a_folder(saved):
    """At once, by way of the cache, and on the twins; nothing is copied meanwhile."""
    model, folder = saved
    expected = theirs(model)
    mine = opened_model(folder)
    assert_close(mine.forward(TOKENS), expected)
    cache = mine.new_cache(2)
    assert_close(mine.prefill(TOKENS[:, :13], None, cache), expected[:, 12])
    for t in range(13, 20):
        assert_close(mine.decode(TOKENS[:, t], cache), expected[:, t])
    assert mine.is_frozen
    assert_close(opened_model(folder, "numpy").forward(TOKENS), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_logits_of_half_precision(dtype, tmp_path):
    """The weights as they are; arithmetic in float32 on both sides."""
    models.make("llama").to(getattr(torch, dtype)).save_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    mine = opened_model(tmp_path)
    assert mine.parameters.packed("head.weight").kind.name == {"float16": "F16", "bfloat16": "BF16"}[dtype]
    assert_close(mine.forward(TOKENS), theirs(model))


def test_logits_of_shards(tmp_path):
    model = models.make("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_close(opened_model(tmp_path).forward(TOKENS), theirs(model))


def test_logits_of_gguf(saved, tmp_path):
    """Llama's queries and keys have their rows in the order of pairs there."""
    model, folder = saved
    opened = open_model(folder)
    if opened.config.qk_norm and opened.config.attention_bias:
        pytest.skip("llama.cpp's Qwen3 has no biases")
    write_gguf(tmp_path / "model.gguf", opened.config, opened.weights, "F32")
    mine = opened_model(tmp_path / "model.gguf")
    config = opened.config  # a Qwen2 whose heads don't fill the width is written as Llama
    is_wide = config.head_size * config.heads != config.width and model.config.model_type == "qwen2"
    assert mine.config.rope_interleaved == (is_wide or model.config.model_type in ("llama", "mistral"))
    expected = theirs(model)
    # GGUF has no word for the formula of GELU: GPT-2's file is read with the one that GPT-2 has.
    assert_close(mine.forward(TOKENS), expected)


def test_gradients_of_every_parameter(saved):
    model, folder = saved
    targets = np.random.default_rng(1).integers(0, models.VOCABULARY, TOKENS.shape)
    logits = model(input_ids=torch.from_numpy(TOKENS)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    mine = opened_model(folder)
    assert mine.loss_and_gradients(TOKENS, targets) == pytest.approx(loss.item(), rel=1e-5)
    assert not mine.is_frozen
    gradients = to_huggingface(mine.config, mine.gradients)
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.abs(gradients[name] - gradient).max() <= TOLERANCE * np.abs(gradient).max(), name


def test_what_we_trained_opens_in_transformers(saved, tmp_path, tokenizer):
    """A checkpoint of ours after a step, interleaved RoPE or not, in their program; and back, to the bit."""
    _, folder = saved
    model = opened_model(folder)
    config = model.config
    if config.positions == "rope" and not (config.qk_norm and config.attention_bias):
        opened = open_model(folder)
        write_gguf(tmp_path / "model.gguf", opened.config, opened.weights, "F32")
        model = opened_model(tmp_path / "model.gguf")
    model.loss_and_gradients(TOKENS[:, :-1], TOKENS[:, 1:])
    fastllm.AdamW(model).step(1e-2)
    expected = model.forward(TOKENS)
    fastllm.save(tmp_path / "ours", model, tokenizer)
    again, _ = fastllm.load(tmp_path / "ours")
    assert again.config == dataclasses.replace(model.config, rope_interleaved=False)
    assert_close(again.forward(TOKENS), expected, 1e-5)
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_close(theirs(there.eval()), expected)


def test_a_preset_of_ours_opens_in_transformers(tmp_path, tokenizer):
    for name in ("nano", "gpt2", "llama"):
        config = fastllm.preset(
            name, vocab_size=tokenizer.vocab_size, width=24, hidden=32, layers=2, heads=2, context=24
        ) if name != "llama" else fastllm.preset(
            name, vocab_size=tokenizer.vocab_size, width=24, hidden=32, layers=2, heads=2, kv_heads=1, context=24
        )  # fmt: skip
        model = fastllm.Model(config, seed=3)
        fastllm.save(tmp_path / name, model, tokenizer)
        there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        tokens = TOKENS % tokenizer.vocab_size
        with torch.no_grad():
            logits = there(input_ids=torch.from_numpy(tokens)).logits.numpy()
        assert_close(model.forward(tokens), logits)
        assert there.generation_config.eos_token_id == tokenizer.end_id


# A real model


def test_smollm2_equals_transformers_on_its_weights(smollm2):
    """The same dequantised weights on both sides, float32."""
    model, tokenizer = fastllm.load(smollm2)
    config = model.config
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = np.array(tokenizer.encode_template(text))
    fields = transformers.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context, rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta,
        tie_word_embeddings=config.tied_head,
    )  # fmt: skip
    with torch.device("meta"):
        there = transformers.LlamaForCausalLM(fields)
    tensors = {name: torch.tensor(array) for name, array in to_huggingface(config, dict(model.parameters)).items()}
    there.load_state_dict(tensors, strict=False, assign=True)
    there.tie_weights()
    there.model.rotary_emb = type(there.model.rotary_emb)(fields)
    with torch.no_grad():
        expected = there.eval()(input_ids=torch.from_numpy(ids[None])).logits[0].numpy()
    assert_close(model.forward(ids), expected)
    cache = model.new_cache()
    model.prefill(ids[:-1], None, cache)
    last = model.decode(ids[-1:], cache)[0]
    assert_close(last, expected[-1])
    assert tokenizer.decode([int(last.argmax())]) == "The"
    assert model.is_frozen
    kinds = {weight.kind.name for weight in open_model(smollm2).weights.values() if not isinstance(weight, np.ndarray)}
    assert kinds == {"Q4_1", "Q8_0"}
    table = open_model(smollm2).weights["embedding.token.weight"]
    np.testing.assert_array_equal(model.parameters["embedding.token.weight"], dequantize(table))


def test_smollm2_answers(smollm2):
    model, tokenizer = fastllm.load(smollm2)
    chat = fastllm.Chat(model, tokenizer, max_tokens=40, temperature=0)
    assert "".join(chat.ask("What is the capital of France?")) == "The capital of France is Paris."
    assert "Rome" in "".join(chat.ask("And of Italy?"))
