"""Continue a text: prints what follows the prompt as it is generated, without the prompt itself.

An empty prompt starts a new text. The prompt is used as it is, without marking who speaks: `fastllm chat` does that.

Several prompts, and those of --batch, are continued side by side; each text is the same as for its prompt alone. With
several texts, --batch, --json or --logprobs, the output is JSON Lines, in the order of the prompts:

  {"prompt": 0, "text": "...", "tokens": [...], "finish_reason": "end", "prompt_tokens": 3}

prompt counts from 0; finish_reason is "end" (an end token), "stop" (a stop string) or "length" (--max-tokens, or the
context is full). --beams adds the "score", --logprobs N the log-probability of each token and N alternatives, each with
the text that it adds, in which U+FFFD stands for a part of a character.

examples:
  fastllm generate runs/shakespeare "ROMEO:" --max-tokens 200 --temperature 0.8
  fastllm generate runs/demo-en "The moon" --beams 4
  fastllm generate runs/demo-en - < prompt.txt
  fastllm generate runs/demo-en "The moon" --n 3 --temperature 1
  fastllm generate runs/demo-en --batch prompts.txt > texts.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from ..config import STEP_ROWS
from ..errors import ConfigError, DataError
from ..generation import GenerationConfig
from .model_options import (
    add_generation,
    add_model,
    add_option,
    decoded,
    generation_config,
    harmless,
    load_to_generate,
    note_what_does_nothing,
    without_mark,
)

if TYPE_CHECKING:
    from ..generation import Completion
    from ..tokenizers import Tokenizer

EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    prompts = parser.add_argument("prompts", type=decoded, metavar="PROMPT", nargs="+", default=[],
                                  help="text to continue; - reads it from standard input, without a final line break"
                                  )  # fmt: skip

    class Batch(argparse.Action):
        """Makes the prompts optional. (With nargs="*", prompts could not follow an option.)"""

        def __call__(self, parser: argparse.ArgumentParser, arguments: argparse.Namespace, value: Any, *_: Any) -> None:
            arguments.batch = value
            prompts.required = False

    parser.add_argument("--batch", action=Batch, metavar="FILE",
                        help="a file with one prompt per line, instead of PROMPT; - is standard input")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="write JSON Lines")
    parser.add_argument("--slots", type=int, default=8, metavar="N",
                        help=f"how many texts to generate side by side, 1 to {STEP_ROWS} (default: 8)")  # fmt: skip
    add_option(parser, "--n", int, "N", "texts for each prompt: samples, which need --temperature, or with --beams the "
               "best hypotheses (default: 1)")  # fmt: skip
    add_option(parser, "--logprobs", int, "N", "add log-probabilities of the tokens, with N alternatives for each")
    generation = add_generation(parser)
    add_option(generation, "--beams", int, "N", "beam search with N hypotheses, at temperature 0 (1)")
    add_option(generation, "--length-penalty", float, "X", "a hypothesis scores log-probability / length ** X (1)")
    add_option(generation, "--early-stopping", _early_stopping, "WHEN", "when a beam search stops. true: once as many "
               "hypotheses are complete as there are beams; false (the default): when no other is likely to become "
               "better; never: when none can")  # fmt: skip
    parser.set_defaults(parser=parser, goes_on="prompts")


def _early_stopping(word: str) -> bool | str:
    if word not in EARLY_STOPPING:
        raise argparse.ArgumentTypeError(f"must be true, false or never; got {word!r}")
    return EARLY_STOPPING[word]


def run(arguments: argparse.Namespace) -> int:
    if arguments.prompts and arguments.batch is not None:
        arguments.parser.error("give either prompts or --batch; got both")
    if arguments.prompts.count("-") > 1:
        arguments.parser.error("standard input can be only one prompt; got - twice")
    if not 1 <= arguments.slots <= STEP_ROWS:
        raise ConfigError(f"--slots must be from 1 to {STEP_ROWS}; got {arguments.slots}; use 8")
    config = generation_config(arguments)
    from ..generation import completions, stream

    prompts = _read_prompts(arguments)
    model, tokenizer = load_to_generate(arguments)
    note_what_does_nothing(config, model)
    config = GenerationConfig.of(config, {}, model.generation_options)
    if arguments.json or arguments.batch is not None or len(prompts) > 1 or config.n > 1 or config.logprobs is not None:
        found = completions(model, tokenizer, prompts, config, slots=arguments.slots)
        for completion in found:
            print(json.dumps(_json_line(completion, tokenizer), ensure_ascii=False, allow_nan=False), flush=True)
    else:
        shown = harmless if sys.stdout.isatty() else str
        for piece in stream(model, tokenizer, prompts[0], config):
            print(shown(piece), end="", flush=True)
        print()
    return 0


def _read_prompts(arguments: argparse.Namespace) -> list[str]:
    if arguments.batch is None:
        given = arguments.prompts
        return [without_mark(sys.stdin.read()).removesuffix("\n") if prompt == "-" else prompt for prompt in given]
    from ..records import read_text

    if os.path.isdir(arguments.batch):
        raise ConfigError(f"--batch must name a file with one prompt per line; got {arguments.batch}, a folder")
    text = without_mark(sys.stdin.read()) if arguments.batch == "-" else read_text(arguments.batch)
    if not text:
        raise DataError(f"--batch needs one prompt per line; got nothing in {arguments.batch}; write one")
    return text.removesuffix("\n").split("\n")


def _text_of(token: int, tokenizer: Tokenizer) -> str | None:
    """What a token adds to a text that has begun (the first one may lose its space); None if it stands for nothing."""
    if token >= tokenizer.vocab_size:
        return None
    stream = tokenizer.stream(skip_special=False)
    stream.push(token)
    stream.flush()
    return stream.push(token) + stream.flush()


def _json_line(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        # JSON has no -inf, the log-probability of an impossible token
        text = _text_of(token, tokenizer)
        return {"token": token, "text": text, "logprob": logprob if math.isfinite(logprob) else None}

    line: dict[str, Any] = {
        "prompt": completion.prompt,
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
    }
    if completion.score is not None:
        line["score"] = completion.score
    if completion.logprobs is not None:
        line["logprobs"] = [
            entry(token, logprob) | {"top": [entry(*alternative) for alternative in top]}
            for token, logprob, top in completion.logprobs
        ]
    return line
