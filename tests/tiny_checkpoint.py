"""A model so small that it learns a few dialogues in a second, on the NumPy twins, and its checkpoint."""

import functools

from fastllm import Adam, Model, ModelConfig, Schedule, Trainer, WordTokenizer, save
from fastllm.datasets import Examples, make_examples
from fastllm.records import record_texts


def dialogue(*contents):
    return {
        "messages": [
            {"role": ("user", "assistant")[turn % 2], "content": content} for turn, content in enumerate(contents)
        ]
    }


DIALOGUES = [
    dialogue("Is it far?", "Yes, very far."),
    dialogue("Who are you?", "I am a small model."),
    dialogue("What is red?", "A rose is red.", "And blue?", "The sea is blue."),
    dialogue("What is blue?", "The sea is blue.", "And red?", "A rose is red.", "Is it far?", "No, it is near."),
]
CONTEXT = 32


@functools.cache
def learned(steps=150):
    """Model and tokenizer after `steps` updates."""
    tokenizer = WordTokenizer.build(record_texts(DIALOGUES))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=24,
        hidden=48,
        layers=1,
        heads=2,
        context=CONTEXT,
        positions="rope",
    )
    model = Model(config, seed=1, backend="numpy")
    data = Examples(make_examples(DIALOGUES, tokenizer, CONTEXT), rows_per_update=4)
    Trainer(model, Adam(model), data, Schedule(peak=1e-2), steps).train()
    return model, tokenizer


def write_checkpoint(folder):
    save(folder, *learned())
    return folder
