"""Measure how well a model predicts a file: loss, perplexity and accuracy per token, and exact answers.

The file is, as for `fastllm train`, JSON Lines or a JSON array of texts, dialogues or instructions, or a text file or a
folder of them. In dialogues only the answers count. The last answer of a dialogue is exact if the model, always taking
the most probable token, gives precisely this answer and then ends.

examples:
  fastllm eval runs/demo-en questions.jsonl
  fastllm eval runs/demo-en fastllm:en/validation.jsonl     a file that comes with fastllm
  fastllm eval runs/shakespeare held-out.txt --json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .model_options import add_model

if TYPE_CHECKING:
    from ..model import Model
    from ..tokenizers import Tokenizer

CONTEXT = 1024  # tokens in a window of text: with a context of 100,000 tokens, activations would fill the memory


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("file", metavar="FILE", help=".jsonl, .ndjson or .json file, text file or folder of text files")
    parser.add_argument("--context", type=int, default=CONTEXT, metavar="N",
                        help=f"cut texts into windows of at most N tokens, or of the model's context if that is less "
                        f"(default: {CONTEXT})")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as a JSON object")


def run(arguments: argparse.Namespace) -> int:
    from ..checkpoint import load
    from ..training.source import resolve

    if arguments.context < 2:
        raise ConfigError(f"--context must be 2 or more; got {arguments.context}; leave it out for {CONTEXT}")
    figures = measure(*load(arguments.model, arguments.backend), resolve(arguments.file), arguments.context)
    if arguments.json:
        print(json.dumps(figures))
        return 0
    print(f"tokens      {figures['targets']:,}")
    print(f"loss        {figures['loss']:.4f}")
    print(f"perplexity  {figures['perplexity']:.4g}")
    print(f"accuracy    {figures['accuracy']:.1%}")
    if figures["unknown_tokens"]:
        print(f"unknown     {figures['unknown_tokens']:,} tokens are not in the vocabulary: read as <unk>, not scored")
    if figures["answers_left_out"]:
        print(f"left out    {figures['answers_left_out']:,} of the answers: dialogues are longer than the context")
    if figures["answers"]:
        right, answers = figures["exact_answers"], figures["answers"]
        print(f"exact       {right:,} of {answers:,} answers, {right / answers:.1%}")
    return 0


def measure(model: Model, tokenizer: Tokenizer, path: Path, context: int = CONTEXT) -> dict[str, Any]:
    """The results by name.

    targets           tokens predicted
    loss, perplexity  loss in nats
    accuracy          0 to 1
    exact_answers     of `answers`, which is the number of dialogues
    answers_left_out  of the loss: answers in dialogues longer than the context
    unknown_tokens    tokens outside the vocabulary: read, but no targets

    context  longest window of a text, in tokens, unless the model's own is shorter

    Raises OSError for a file that can't be read, DataError for one that can't be used, FastllmError if the loss isn't
    finite.
    """
    from ..compilation import Uses, compile_kernels
    from ..datasets import Dataset, Examples, TokenStream, count_missing, encode_file
    from ..errors import FastllmError
    from ..records import holds_records, read_records, read_text
    from ..training import evaluate
    from ..training.answers import exact_answers

    context = min(context, model.config.context)
    records = read_records(path) if holds_records(path) else []
    dataset: Dataset
    left_out = 0
    if records:
        examples = []
        whole = model.config.context
        for made, left in encode_file(path, records, tokenizer, lambda r: context if "text" in r else whole):
            examples += made
            left_out += left
        dataset = Examples(examples)
    else:
        tokens = tokenizer.encode(read_text(path, refuse_records=True))
        dataset = TokenStream(tokens, context, missing=tokenizer.missing_id)
    compile_kernels(model, Uses(measures=True, generates=bool(records)))
    score = evaluate(model, dataset)
    if not math.isfinite(score.loss):
        raise FastllmError(f"the loss must be finite; got {score.loss}; load another checkpoint")
    right, answers = exact_answers(model, tokenizer, records)
    return {
        "targets": score.targets,
        "loss": score.loss,
        "perplexity": min(score.perplexity, sys.float_info.max),  # JSON has no infinity
        "accuracy": score.accuracy,
        "exact_answers": right,
        "answers": answers,
        "answers_left_out": left_out,
        "unknown_tokens": count_missing(tokenizer, (batch.tokens for batch in dataset.in_order()))[0],
    }
