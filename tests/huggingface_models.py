"""Tiny models of transformers with random weights, for tests. The test must have importorskipped transformers."""

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 24,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name -> class of the model, and what its configuration is given
CASES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "n_inner": 32, "tie_word_embeddings": False}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", COMMON),
    "llama-tied-biases": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**COMMON, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama3-rope": ("LlamaForCausalLM", "LlamaConfig", {**COMMON, "head_dim": 12, "rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**COMMON, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**COMMON, "head_dim": 10, "sliding_window": None}),
    "mistral-tied": ("MistralForCausalLM", "MistralConfig", {**COMMON, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", COMMON),
    "qwen2-tied": ("Qwen2ForCausalLM", "Qwen2Config", {**COMMON, "tie_word_embeddings": True}),
    "qwen2-wide": ("Qwen2ForCausalLM", "Qwen2Config", {**COMMON, "head_dim": 16}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**COMMON, "head_dim": 16}),
    "qwen3-tied-biases": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**COMMON, "head_dim": 6, "tie_word_embeddings": True, "attention_bias": True},
    ),
}


def make(name, seed=0):
    """The model of that name, in evaluation. No two weights are alike, norms and biases are far from 1 and 0."""
    import torch
    import transformers

    model_class, config_class, fields = CASES[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


def expected(model):
    """Our names -> (its tensor in float32, whether it is a matrix), read off the modules one by one."""
    config = model.config
    body = model.transformer if config.model_type == "gpt2" else model.model
    arrays = {}

    def put(name, module, rows=slice(None), transposed=False):
        weight = module.weight.detach().float().numpy()
        arrays[f"{name}.weight"] = (weight.T if transposed else weight)[rows]
        if getattr(module, "bias", None) is not None:
            arrays[f"{name}.bias"] = module.bias.detach().float().numpy()[rows]

    if config.model_type == "gpt2":
        width = config.n_embd
        put("embedding.token", body.wte)
        put("embedding.position", body.wpe)
        for i, block in enumerate(body.h):
            ours = f"blocks.{i}"
            put(f"{ours}.attention_norm", block.ln_1)
            for part, name in enumerate(("query", "key", "value")):
                rows = slice(part * width, (part + 1) * width)
                put(f"{ours}.attention.{name}", block.attn.c_attn, rows, transposed=True)
            put(f"{ours}.attention.output", block.attn.c_proj, transposed=True)
            put(f"{ours}.feed_forward_norm", block.ln_2)
            put(f"{ours}.feed_forward.up", block.mlp.c_fc, transposed=True)
            put(f"{ours}.feed_forward.down", block.mlp.c_proj, transposed=True)
        put("final_norm", body.ln_f)
    else:
        put("embedding.token", body.embed_tokens)
        for i, block in enumerate(body.layers):
            ours, attention = f"blocks.{i}", block.self_attn
            put(f"{ours}.attention_norm", block.input_layernorm)
            put(f"{ours}.attention.query", attention.q_proj)
            put(f"{ours}.attention.key", attention.k_proj)
            put(f"{ours}.attention.value", attention.v_proj)
            put(f"{ours}.attention.output", attention.o_proj)
            if config.model_type == "qwen3":
                put(f"{ours}.attention.query_norm", attention.q_norm)
                put(f"{ours}.attention.key_norm", attention.k_norm)
            put(f"{ours}.feed_forward_norm", block.post_attention_layernorm)
            put(f"{ours}.feed_forward.gate", block.mlp.gate_proj)
            put(f"{ours}.feed_forward.up", block.mlp.up_proj)
            put(f"{ours}.feed_forward.down", block.mlp.down_proj)
        put("final_norm", body.norm)
    if not config.tie_word_embeddings:
        put("head", model.lm_head)
    return arrays


def logits(model, seed=1):
    """Of 20 random tokens, (20, V)."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        return model(input_ids=torch.randint(VOCABULARY, (1, 20))).logits[0].float().numpy()


__all__ = ["CASES", "VOCABULARY", "expected", "logits", "make"]
