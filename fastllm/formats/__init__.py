"""Model files of other projects: Hugging Face folders, GGUF and llama2.c."""

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
    """Open another project's model: a Hugging Face folder, a GGUF file, or a llama2.c checkpoint.

    The format is recognised by content. Files are memory-mapped and their matrices not copied, except those of GPT-2 in
    a Hugging Face folder and of llama2.c's version 2. The files must not be changed while the model is in use;
    replacing them by new ones does no harm.

    Raises FormatError for another format, a damaged file, or a model that fastllm can't run; FileNotFoundError where
    there is nothing; OSError where it can't be read.
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
            f"{path} must be a Hugging Face folder, a GGUF file or a llama2.c checkpoint; got none of these ({error}); "
            "use one of them"
        ) from None
    return OpenedModel(
        config=config,
        weights={name: packed(array) if array.ndim == 2 else array for name, array in parameters.items()},
        source="llama2c",
        path=path,
        generation=generation_facts(path, config.vocab_size, [1, 2], {}),  # <s> and </s>, where run.c stops
        other_generation={"bos_token_id": 1},
    )
