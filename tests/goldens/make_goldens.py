"""Make the goldens: what Hugging Face's GPT-2, Llama, Qwen2, Qwen3 and Mistral compute for tiny random weights.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy
    venv/bin/python tests/goldens/make_goldens.py

Run it as a file, so that the repository's root is not on sys.path: there, transformers takes our `kernels`
for the package of that name. The tests read only the .npz files it writes beside itself:

    config                 JSON, as in a config.json
    tokens, targets        (N,) int32    packed sequences; a target below 0 has no loss
    starts                 (S+1,) int32  where each sequence begins, and N
    logits                 (N, V)
    loss                   ()            mean over targets >= 0
    weight/NAME, gradient/NAME           every parameter, by its name in the state dict

Weights, biases and norms are random and large, so that none can be forgotten without a trace; the sequences
run one by one, so nothing leaks from one to the next.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LENGTHS = (1, 7, 24, 2, 13)  # one row, odd, the whole context of GPT-2, two rows, odd
VOCABULARY = 61
NO_LOSS = (-100, -1)  # the two usual marks of a token without loss

GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 24,
    "n_embd": 24,
    "n_layer": 2,
    "n_inner": 50,
    "n_head": 3,
    "layer_norm_epsilon": 1e-3,  # large, as Llama's: another one must not pass
    "bos_token_id": None,  # the defaults lie beyond this vocabulary
    "eos_token_id": None,
}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-3,
}
# With head_dim 12 and theta 100 the six wavelengths are 6, 14, 29, 63, 135 and 292 rows. llama3 keeps those
# below 64 / 4, divides those above 64 / 1, and blends between, so each rule meets two of them.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 500.0}


def models() -> dict[str, PreTrainedModel]:
    """File name -> a model of that kind, with the weights transformers gives it."""
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(**GPT2)),
        "llama": LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters=PLAIN_ROPE)),
        "llama-tied-wide-heads": LlamaForCausalLM(
            LlamaConfig(**{**LLAMA, "tie_word_embeddings": True}, head_dim=10, rope_parameters=PLAIN_ROPE)
        ),
        "llama-biases-linear-rope": LlamaForCausalLM(
            LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, rope_parameters=LINEAR_ROPE)
        ),
        "llama3-rope": LlamaForCausalLM(LlamaConfig(**LLAMA, head_dim=12, rope_parameters=LLAMA3_ROPE)),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**LLAMA, rope_parameters=PLAIN_ROPE)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**LLAMA, head_dim=10, rope_parameters=PLAIN_ROPE)),
        "qwen3-tied-biases": Qwen3ForCausalLM(
            Qwen3Config(
                **{**LLAMA, "tie_word_embeddings": True}, head_dim=6, attention_bias=True, rope_parameters=PLAIN_ROPE
            )
        ),
        "mistral": MistralForCausalLM(
            MistralConfig(**LLAMA, head_dim=8, sliding_window=None, rope_parameters=PLAIN_ROPE)
        ),
    }


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Weights that keep activations near 1, biases as large as what they are added to, norms around 1."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim == 1:
            is_norm_weight = "bias" not in name
            parameter.copy_(1.0 + 0.5 * noise if is_norm_weight else 0.5 * noise)
        else:
            is_table = "wte" in name or "wpe" in name or "embed_tokens" in name
            parameter.copy_(noise * (0.5 if is_table else model.config.hidden_size**-0.5))


def golden(model: PreTrainedModel, seed: int) -> dict[str, np.ndarray]:
    """Inputs, logits, loss and gradients of one model."""
    torch.manual_seed(seed)
    randomise(model)
    model.eval()  # no dropout

    starts = np.cumsum((0, *LENGTHS), dtype=np.int32)
    tokens = torch.randint(VOCABULARY, (int(starts[-1]),))
    targets = torch.randint(VOCABULARY, tokens.shape)
    targets[1::5] = NO_LOSS[0]
    targets[3::7] = NO_LOSS[1]

    logits = torch.cat([model(input_ids=sequence[None]).logits[0] for sequence in tokens.split(LENGTHS)])
    counted = targets >= 0
    loss = torch.nn.functional.cross_entropy(logits[counted], targets[counted])
    loss.backward()

    arrays = {
        "config": np.array(json.dumps(model.config.to_dict(), sort_keys=True)),
        "tokens": tokens.numpy().astype(np.int32),
        "targets": targets.numpy().astype(np.int32),
        "starts": starts,
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
    }
    for name, parameter in model.named_parameters():  # each once, a tied head under the embedding's name
        arrays[f"weight/{name}"] = parameter.detach().numpy()
        arrays[f"gradient/{name}"] = parameter.grad.numpy()
    return arrays


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for seed, (name, model) in enumerate(models().items()):
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **golden(model, seed))
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, {model.num_parameters()} parameters")


if __name__ == "__main__":
    main()
