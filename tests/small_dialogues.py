"""Small dialogues and examples to train on."""

import numpy as np

from fastllm.datasets import Example

DIALOGUE = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "ef"},
]
USER, ANSWER = DIALOGUE[:2]
SYSTEM = {"role": "system", "content": "g"}


def example(*tokens):
    return Example(np.array(tokens, np.int32), np.array(tokens, np.int32) + 1)
