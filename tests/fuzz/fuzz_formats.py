"""Coverage-guided fuzzing of the readers of strangers' files, with atheris. No test: run it by hand.

    pip install atheris
    python tests/fuzz/fuzz_formats.py gguf -max_total_time=300

The first argument is gguf, safetensors, llama2c or folder (a config.json, with weights that belong to a small model);
the others are libFuzzer's. Found inputs go to the current folder. What comes out must be FormatError or a model whose
weights have the shapes that its configuration asks for.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

with atheris.instrument_imports(include=["fastllm.formats", "fastllm.config"]):
    import fastllm
    from fastllm.errors import FormatError
    from fastllm.formats import open_model
    from fastllm.formats.safetensors_file import read_safetensors
    from fastllm.parameters import parameter_shapes

from gguf_bytes import model_file  # noqa: E402
from test_llama2c import checkpoint, later_checkpoint  # noqa: E402
from test_open_model import GPT2, LLAMA, make_folder  # noqa: E402
from test_safetensors import WHOLE  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-formats-"))


def open_whole(path):
    opened = open_model(path)
    decayed, others = parameter_shapes(opened.config)
    assert {name: weight.shape for name, weight in opened.weights.items()} == decayed | others


def one_file(data):
    path = FOLDER / "file"
    path.write_bytes(data)
    open_whole(path)


def safetensors_file(data):
    path = FOLDER / "file"
    path.write_bytes(data)
    assert sum(tensor.data.size for tensor in read_safetensors(path).values()) <= len(data)


def folder(data):
    (FOLDER / "model" / "config.json").write_bytes(data)
    with contextlib.suppress(FormatError, FileNotFoundError):  # there is no tokenizer
        fastllm.load(FOLDER / "model")
    open_whole(FOLDER / "model")


SEEDS = {
    "gguf": (one_file, [model_file()]),
    "safetensors": (safetensors_file, [WHOLE]),
    "llama2c": (one_file, [checkpoint(), later_checkpoint(1)[0], later_checkpoint(2)[0]]),
    "folder": (folder, [json.dumps({**fields, "eos_token_id": [1]}).encode() for fields in (LLAMA, GPT2)]),
}


def main():
    run, seeds = SEEDS[sys.argv.pop(1)]
    make_folder(FOLDER / "model")
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def one(data):
        with contextlib.suppress(FormatError):
            run(data)

    atheris.Setup([*sys.argv, "-max_len=8192", "-rss_limit_mb=2048", "-timeout=10", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
