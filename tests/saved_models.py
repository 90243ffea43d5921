"""Checkpoints opened on twins, and their files written anew with changes."""

import json

import fastllm
from fastllm.checkpoint import CONFIG


def load(path):
    return fastllm.load(path, backend="numpy")


def rewrite_config(folder, **changes):
    """What config.json says of the model in our words."""
    document = json.loads((folder / CONFIG).read_text())
    document["fastllm"] |= changes
    (folder / CONFIG).write_text(json.dumps(document))


def rewrite_theirs(folder, name=CONFIG, **changes):
    """What a file says in Hugging Face's words."""
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(document | changes))


def rewrite_model(folder, **changes):
    document = json.loads((folder / CONFIG).read_text())
    rewrite_config(folder, model={**document["fastllm"]["model"], **changes})
