"""Other projects' files of models, read and written."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import FormatError
from .gguf import open_gguf
from .gguf_export import write_gguf
from .gguf_file import is_gguf
from .huggingface_export import write_huggingface
from .huggingface_folder import CONFIG, open_huggingface
from .llama2c import read_llama2c
from .opened import OpenedModel, generation_facts, packed

__all__ = ["OpenedModel", "open_model", "write_gguf", "write_huggingface"]


def open_model(path: str | os.PathLike[str]) -> OpenedModel:
    """Open a model of another project: a folder of Hugging Face's, a GGUF file, or a checkpoint of llama2.c.

    What it is follows from its content. Opening maps the files into memory and copies nothing, but GPT-2's matrices
    in a folder of Hugging Face's, and llama2.c's version 2. The files must stay as they are while the model is in
    use; a file that takes their place does no harm.

    Raises FormatError for what is none of these, is damaged, or that fastllm can't run; it says what is supported.
    Raises FileNotFoundError where there is nothing, OSError where it can't be read.
    """
    path = Path(path)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return open_huggingface(path)
        files = sorted(path.glob("*.gguf"))
        found = f"; there is {files[0].name}: name the file" if files else "; name a folder with a config.json"
        raise FormatError(f"{path} must be a model's folder, with a {CONFIG}; got none{found}")
    if not path.exists():
        raise FileNotFoundError(f"there must be a model at {path}; got nothing; check the name of the folder or file")
    if not path.is_file():  # a pipe would wait for a writer
        raise FormatError(f"{path} must be a file or a folder; got something else, such as a pipe; name a file")
    if is_gguf(path):
        return open_gguf(path)
    if path.suffix == ".safetensors" or path.name == CONFIG:
        raise FormatError(f"{path} is a part of a model; fastllm opens its folder; name {path.parent}")
    try:
        config, parameters = read_llama2c(path)
    except FormatError as error:
        raise FormatError(
            f"{path} must be a folder of Hugging Face's, a GGUF file or a checkpoint of llama2.c; got none of these "
            f"({error}); use one of them"
        ) from None
    return OpenedModel(
        config=config,
        weights={name: packed(array) if array.ndim == 2 else array for name, array in parameters.items()},
        source="llama2c",
        path=path,
        generation=generation_facts(path, config.vocab_size, [1, 2], {}),  # <s> and </s>, as run.c has them
        other_generation={"bos_token_id": 1},
    )
