"""Write the README's benchmark table from the results of `fastllm bench --json FILE`.

    python benchmarks/make_readme_table.py FILE [--readme README.md]

It takes the place of what stands between <!-- bench:begin --> and <!-- bench:end -->. Training steps come
first; the kernels, one line for each size, fold out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastllm.atomic import write_text
from fastllm.figures import put_between, three_digits

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEAD = "| case | twin ms | kernel ms | p20 - p80 | faster | GFLOP/s | GB/s |\n|---|--:|--:|--:|--:|--:|--:|"
Result = dict[str, Any]


def table(results: list[Result]) -> str:
    """The Markdown between the markers."""
    pairs: dict[str, dict[str, Result]] = {}
    for result in results:
        pairs.setdefault(result["case"], {})[result["contender"]] = result
    rows = {case: row(case, pair["numba"], pair["numpy"]) for case, pair in pairs.items()}
    steps = [line for case, line in rows.items() if case.startswith("training_step")]
    kernels = [line for case, line in rows.items() if not case.startswith("training_step")]
    lost = sum(pair["numba"]["ratio"] < 1 for pair in pairs.values())
    parts = [
        f"Measured by `fastllm bench` on {results[0]['machine']}: medians; *faster* is the twin's time / the "
        f"kernel's. Of {len(pairs)} cases the kernels lose {lost}.",
    ]
    if steps:
        parts.append("\n".join([HEAD, *steps]))
    if kernels:
        parts.append("<details><summary>Each kernel</summary>")
        parts.append("\n".join([HEAD, *kernels]))
        parts.append("</details>")
    return "\n\n".join(parts)


def row(case: str, kernel: Result, twin: Result) -> str:
    ratio = f"{kernel['ratio']:.2f}x"
    cells = (
        case.removeprefix("training_step "),
        three_digits(twin["median_ms"]),
        three_digits(kernel["median_ms"]),
        f"{three_digits(kernel['p20_ms'])} - {three_digits(kernel['p80_ms'])}",
        f"**{ratio}**" if kernel["ratio"] < 1 else ratio,
        three_digits(kernel["gflops"]),
        three_digits(kernel["gbytes_per_s"]),
    )
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="from fastllm bench --json")
    parser.add_argument("--readme", type=Path, default=Path(__file__).resolve().parents[1] / "README.md")
    arguments = parser.parse_args(argv)
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    if failed := sorted({result["case"] for result in results if result["error"]}):
        sys.exit(f"a table is made only of cases that passed; failed: {', '.join(failed)}; mend them first")
    text = arguments.readme.read_text(encoding="utf-8")
    try:
        text = put_between(text, BEGIN, END, table(results))
    except ValueError as error:
        sys.exit(f"{arguments.readme}: {error}")
    write_text(arguments.readme, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
