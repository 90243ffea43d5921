"""Draw a run's curves in the terminal, and write them as SVG if asked.

examples:
  fastllm plot runs/demo-en
  fastllm plot runs/demo-en --what accuracy --svg accuracy.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..training.curves import QUANTITIES, draw, read_metrics, write_svg
from ..training.run import METRICS
from .output_option import check_output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=f"a run folder, or its {METRICS}")
    parser.add_argument("--what", choices=QUANTITIES, default=QUANTITIES[0], help="default: loss")
    parser.add_argument("--svg", metavar="FILE", help="write the chart here too")


def run(arguments: argparse.Namespace) -> int:
    given = Path(arguments.run)
    path = given if given.is_file() else given / METRICS
    metrics = read_metrics(path)
    if arguments.svg:
        check_output("--svg", arguments.svg, path)
    print(draw(metrics, arguments.what))
    if arguments.svg:
        write_svg(metrics, arguments.svg, arguments.what)
    return 0
