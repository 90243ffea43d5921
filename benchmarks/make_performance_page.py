"""Write docs/performance.md, its charts and the README's summary from measurements.

    cd benchmarks/measured
    fastllm bench peers --json peers.json
    python ../limits.py --json limits.json
    python ../original_job.py --json original.json
    fastllm bench generate --json generate.json
    fastllm bench generate --cache-dtype float16 --json generate-float16.json
    python ../quantization_loss.py MODEL TEXT --json quantization.json
    python ../make_performance_page.py

Measurements are kept in benchmarks/measured, so that the page can be written again; other-*.json there are the race
against PyTorch as other machines ran it. What no run measures stands in performance_prose.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from fastllm.atomic import write_text
from fastllm.figures import put_between, three_digits
from fastllm.training import svg

Record = dict[str, Any]


def sections(text: str) -> dict[str, str]:
    """By its heading of the first level, what stands below each."""
    parts = (part.split("\n", 1) for part in f"\n{text}".split("\n# ")[1:])
    return {name: content.strip("\n") + "\n" for name, content in parts}


BEGIN, END = "<!-- race:begin -->", "<!-- race:end -->"  # of the summary
PROSE = sections(Path(__file__).with_name("performance_prose.md").read_text(encoding="utf-8"))

# What is asked for, against llama.cpp: decoding by kind, and prompts against its F32.
DECODE_TARGETS = {"F32": 1.0, "F16": 1.0, "Q8_0": 1.0, "Q4_0": 0.8}
MEMORY_TARGETS = {"nanoGPT char": 0.6, "GPT-2 124M, short": 0.9, "GPT-2 124M, long": 0.9}
PRODUCT_TARGETS = {"1024x768x3072": 0.9, "80x128x384": 0.7}
PROMPT_TARGET, TRANSFORMERS_TARGET, TOGETHER_TARGET, BEYOND_TARGET = 0.8, 3.0, 4.0, 150e6


def page(
    peers: Record,
    limits: Record,
    original: list[Record],
    generate: Record,
    halves: Record,
    quantization: Record,
    others: list[Record],
) -> str:
    """The whole text. halves: as generate, with keys and values in float16."""
    return "\n".join(
        [
            "# Performance\n",
            "Written by `benchmarks/make_performance_page.py` from measurements; see there how to repeat them.\n",
            f"Machine: {described(peers)}.\n",
            "## Against PyTorch\n",
            race_table(peers),
            *[line for other in others for line in other_text(other)],
            PROSE["Method"],
            "## What bounds each case\n",
            *(bound(case) for case in peers["cases"]),
            *(line for case in peers["cases"] for line in tried(case)),
            "\n## Memory\n",
            "Peak resident memory of the whole process, imports included. Kernels come from the disk, where they are "
            "before the race; so may what torch.compile has made before.\n",
            memory_table(peers),
            "## How close to the machine's limits\n",
            limits_text(limits),
            PROSE["Limits"],
            "## Generating, against llama.cpp and transformers\n",
            f"{generate['model']['name']}, {generate['threads']} threads; {generate['machine']}.\n",
            generation_table(generate, peak_of(peers)),
            halves_text(halves),
            PROSE["Generating: method"],
            PROSE["Generating: bounds"],
            "## What quantising costs\n",
            quantization_table(quantization),
            "## Growth\n",
            growth_text(limits),
            "## Start\n",
            start_text(limits),
            "## The original's job\n",
            original_text(original),
        ]
    )


def peak_of(peers: Record) -> float:
    """The multiply-add peak of the cores that were used, GFLOP/s."""
    return statistics.median(case["limits"]["gflops"] for case in peers["cases"])


def described(peers: Record) -> str:
    """The machine, and how fast it is: clouds hide a processor's name."""
    return f"{peers['machine']}; multiply-add peak {peak_of(peers):.0f} GFLOP/s"


def better_pytorch(case: Record) -> float:
    """Milliseconds of the better of the others."""
    return min(times["median_ms"] for name, times in case["contenders"].items() if name != "fastllm")


def at_the_peak(case: Record) -> str:
    """The ratio of a step that did nothing but the counted multiply-adds, at the peak."""
    return f"{better_pytorch(case) * case['limits']['gflops'] / case['gflop'] / 1e3:.2f}x"


def ratio_text(case: Record) -> str:
    """The ratio, bold where it misses the target."""
    return judged(f"{case['ratio']:.2f}x", case["ratio"] >= case["target"])


def summary(peers: Record, generate: Record) -> str:
    """What the README says."""
    lines = [
        f"Measured on {described(peers)}. PyTorch is the faster of eager and compiled.\n",
        "| training step | PyTorch, ms | fastllm, ms | faster |",
        "|---|--:|--:|--:|",
    ]
    for case in peers["cases"]:
        ours = case["contenders"]["fastllm"]["median_ms"]
        times = f"{three_digits(better_pytorch(case))} | {three_digits(ours)}"
        lines.append(f"| {case['case']} | {times} | {case['ratio']:.2f}x |")
    rows = {(row["kind"], row["contender"]): row for row in generate["rows"]}
    kinds = [kind for kind, name in rows if name == "llama.cpp"]
    theirs = ", ".join(
        f"{kind} {ratio_of(rows[kind, 'fastllm'], rows[kind, 'llama.cpp'], 'decode'):.2f}x" for kind in kinds
    )
    ratio = ratio_of(rows["F32", "fastllm"], rows["F32", "transformers"], "decode")
    millions = f"{generate['model']['parameters'] / 1e6:.0f}"
    lines.append(
        f"\nDecoding with {millions} million parameters is as many times as fast as with llama.cpp: {theirs}; as with "
        f"transformers (F32): {ratio:.2f}x."
    )
    return "\n".join(lines)


def bound(case: Record) -> str:
    """What holds a case back."""
    return f"- **{case['case']}**: {' '.join(PROSE['Bounds: ' + case['case']].split())}."


def tried(case: Record) -> list[str]:
    """What was tried for a case that misses its target."""
    name = f"Tried: {case['case']}"
    if case["ratio"] >= case["target"] or name not in PROSE:
        return []
    return [f"\n### What was tried for {case['case']}\n", PROSE[name].rstrip()]


def other_text(other: Record) -> list[str]:
    """The race on another machine."""
    lines = [
        f"The same on another machine, by an earlier version: {described(other)}.\n",
        "| case | better PyTorch, ms | fastllm, ms | ratio | target | at the peak | share of peak |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for case in other["cases"]:
        ours = case["contenders"]["fastllm"]
        lines.append(
            f"| {case['case']} | {three_digits(better_pytorch(case))} | {three_digits(ours['median_ms'])} | "
            f"{ratio_text(case)} | {case['target']:g}x | {at_the_peak(case)} | {ours['share_of_peak']:.0%} |"
        )
    return [*lines, ""]


def race_table(peers: Record) -> str:
    lines = [
        "| case | PyTorch eager, ms | compiled, ms | fastllm, ms | ratio | target | at the peak | share of peak |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in peers["cases"]:
        ours, eager, compiled = (case["contenders"][name] for name in ("fastllm", "eager", "compiled"))
        lines.append(
            f"| {case['case']} | {spread(eager)} | {spread(compiled)} | {spread(ours)} | {ratio_text(case)} | "
            f"{case['target']:g}x | {at_the_peak(case)} | {ours['share_of_peak']:.0%} |"
        )
    for name, error in peers["failed"].items():
        lines.append(f"| {name} | failed: {error} | | | | | | |")
    lost = [case["case"] for case in peers["cases"] if case["ratio"] < 1]
    said = "; ".join(case["case"] for case in peers["cases"] if case["ratio"] < case["target"]) or "none"
    lines += ["", f"Slower than PyTorch: {'; '.join(lost) or 'none'}. Short of the target (bold): {said}.\n"]
    return "\n".join(lines)


def spread(contender: Record) -> str:
    median, low, high = (three_digits(contender[f"{key}_ms"]) for key in ("median", "p20", "p80"))
    return f"{median} ({low}-{high})"


def memory_table(peers: Record) -> str:
    lines = [
        "| case | PyTorch eager, MB | compiled, MB | fastllm, MB | of eager | at most |", "|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for case in peers["cases"]:
        ours, eager, compiled = (case["contenders"][name]["peak_mb"] for name in ("fastllm", "eager", "compiled"))
        most = MEMORY_TARGETS.get(case["case"])
        share = judged(f"{ours / eager:.2f}x", most is None or ours / eager <= most)
        asked = f"{most}x" if most else ""
        lines.append(f"| {case['case']} | {eager:.0f} | {compiled:.0f} | {ours:.0f} | {share} | {asked} |")
    return "\n".join([*lines, ""])


def judged(text: str, is_met: bool) -> str:
    """What was measured, bold where it misses what is asked for."""
    return text if is_met else f"**{text}**"


def limits_text(limits: Record) -> str:
    lines = ["| product | rows x inputs x outputs | GFLOP/s | share of peak | asked for |", "|---|---|--:|--:|--:|"]
    for record in limits["products"]:
        least = PRODUCT_TARGETS[record["size"]]
        share = judged(f"{record['share']:.0%}", record["share"] >= least)
        lines.append(f"| {record['product']} | {record['size']} | {record['gflops']:.0f} | {share} | {least:.0%} |")
    one, every = limits["threads"]
    decode, times = limits["decode"], one["ms"] / every["ms"]
    read, computed = decode["share_of_bandwidth"], decode["share_of_peak"]
    return "\n".join(
        [
            *lines,
            "",
            f"A step of nanoGPT char takes {one['ms']:.0f} ms on one thread and {every['ms']:.0f} ms on "
            f"{every['threads']}: {judged(f'{times:.2f}x', times >= 1.8)} (asked for: 1.8x). The bits are the same "
            "(tests).\n",
            f"Decoding with {decode['parameters'] / 1e6:.0f} million float32 parameters: {decode['tokens_per_s']:.0f} "
            f"tokens/s, {judged(f'{read:.0%}', read >= 0.85)} of the bandwidth of reading memory (asked for: 85%). "
            f"A prompt of 128 tokens: {decode['prompt_tokens_per_s']:.0f} tokens/s, "
            f"{judged(f'{computed:.0%}', computed >= 0.7)} of the multiply-add peak (asked for: 70%).\n",
        ]
    )


def generation_table(generate: Record, peak: float) -> str:
    """peak  the multiply-add peak, GFLOP/s"""
    rows = {(row["kind"], row["contender"]): row for row in generate["rows"]}
    lines = [
        "| weights | program | decoding, tokens/s | prompts, tokens/s | 8 texts at once, tokens/s | beyond, MB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for (kind, name), row in rows.items():
        together = ""
        if row["together"]:
            together = f"{row['together_rate']['median']:.0f} ({row['together_ratio']:.1f}x of one)"
        lines.append(
            f"| {kind} | {name} | {rate(row['decode'])} | {rate(row['prompt'])} | {together} | "
            f"{row['beyond_bytes'] / 1e6:.0f} |"
        )
    lines += ["", "| asked for | measured | at the peak |", "|---|--:|--:|"]

    def wanted(
        what: str, measured: float, target: float, at_most: bool = False, unit: str = "x", most: float | None = None
    ) -> None:
        is_met = measured <= target if at_most else measured >= target
        text = f"{measured:.0f}{unit}" if at_most else f"{measured:.2f}{unit}"
        lines.append(f"| {what} {'at most' if at_most else 'at least'} {target:g}{unit} | "
                     f"{judged(text, is_met)} | {f'{most:.1f}x' if most else ''} |")  # fmt: skip

    for kind, target in DECODE_TARGETS.items():
        if (kind, "llama.cpp") in rows:
            ours, theirs = rows[kind, "fastllm"], rows[kind, "llama.cpp"]
            wanted(f"decoding {kind}, of llama.cpp's", ratio_of(ours, theirs, "decode"), target)
    for kind in DECODE_TARGETS:
        if ("F32", "llama.cpp") in rows:
            ratio = ratio_of(rows[kind, "fastllm"], rows["F32", "llama.cpp"], "prompt")
            wanted(f"prompts {kind}, of llama.cpp's F32", ratio, PROMPT_TARGET)
    if ("F32", "transformers") in rows:
        ratio = ratio_of(rows["F32", "fastllm"], rows["F32", "transformers"], "decode")
        wanted("decoding F32, of transformers'", ratio, TRANSFORMERS_TARGET)
    for kind in DECODE_TARGETS:
        row = rows[kind, "fastllm"]
        one = row["together_rate"]["median"] / row["together_ratio"]
        most = peak * 1e9 / (2 * generate["model"]["parameters"]) / one if "parameters" in generate["model"] else None
        wanted(f"8 texts at once {kind}, of one", row["together_ratio"], TOGETHER_TARGET, most=most)
    for kind in DECODE_TARGETS:
        beyond = rows[kind, "fastllm"]["beyond_bytes"] / 1e6
        wanted(f"memory beyond file and cache {kind},", beyond, BEYOND_TARGET / 1e6, at_most=True, unit=" MB")
    if all((kind, "llama.cpp") in rows for kind in DECODE_TARGETS):
        same = (f"{kind} {ratio_of(rows[kind, 'fastllm'], rows[kind, 'llama.cpp'], 'prompt'):.2f}x"
                for kind in DECODE_TARGETS)  # fmt: skip
        lines += ["", f"Prompts, of llama.cpp's with the same weights: {', '.join(same)}."]
    return "\n".join([*lines, ""])


def halves_text(halves: Record) -> str:
    rows = {(row["kind"], row["contender"]): row for row in halves["rows"]}

    def ratio(kind: str, name: str) -> str:
        return f"{kind} {ratio_of(rows[kind, 'fastllm'], rows[kind, name], 'decode'):.2f}x"

    theirs = ", ".join(ratio(kind, "llama.cpp") for kind in DECODE_TARGETS)
    eight = ", ".join(f"{kind} {rows[kind, 'fastllm']['together_rate']['median']:.0f}" for kind in DECODE_TARGETS)
    return (
        "fastllm keeps keys and values in float32 here, llama.cpp in float16. With float16 on both sides "
        f"(`--cache-dtype float16`, a run of its own) it decodes, of llama.cpp's speed, {theirs}, of transformers' "
        f"{ratio('F32', 'transformers')}, and eight texts at once {eight} tokens/s. Logits are then off by 3 to 4 "
        "parts in ten thousand of the largest.\n"
    )


def ratio_of(ours: Record, theirs: Record, name: str) -> float:
    return ours[name]["median"] / theirs[name]["median"]


def rate(rates: Record) -> str:
    return f"{rates['median']:.0f} ({rates['p20']:.0f}-{rates['p80']:.0f})"


def quantization_table(quantization: Record) -> str:
    lines = [
        f"{quantization['model']}, its weights taken as float32; perplexity on {quantization['tokens']:,} tokens of "
        f"{quantization['text']}, in windows of {quantization['window']}.\n",
        "| weights | bytes | of F32 | perplexity | change |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in quantization["rows"]:
        lines.append(
            f"| {row['kind'].upper()} | {row['bytes']:,} | {row['size']:.1%} | {row['perplexity']:.4f} | "
            f"{row['change']:+.2%} |"
        )
    if quantization["kinds_of_the_model"] != ["F32"]:
        kinds = ", ".join(quantization["kinds_of_the_model"])
        lines += ["", f"The model's file holds {kinds}: quantising to that again loses next to nothing."]
    return "\n".join([*lines, ""])


def growth_text(limits: Record) -> str:
    lines = ["| sequences of 64 tokens | ms | ms a sequence | MB |", "|--:|--:|--:|--:|"]
    for record in limits["sequences"]:
        count = record["sequences"]
        lines.append(f"| {count} | {record['ms']:.1f} | {record['ms'] / count:.2f} | {record['mb']:.0f} |")
    lines += ["", "![time by number of sequences](performance-sequences.svg)", ""]
    lines += ["| tokens in one sequence | ms | GFLOP | GFLOP/s | MB |", "|--:|--:|--:|--:|--:|"]
    for record in limits["context"]:
        lines.append(
            f"| {record['tokens']} | {record['ms']:.0f} | {record['gflop']:.0f} | {record['gflops']:.0f} | "
            f"{record['mb']:.0f} |"
        )
    lines += [
        "",
        "![time and memory by context](performance-context.svg)",
        "",
        "Time follows the arithmetic, memory the length: nothing of size T x T is kept. More sequences take no more "
        "memory, since a batch is done a thousand rows at a time.\n",
    ]
    return "\n".join(lines)


def start_text(limits: Record) -> str:
    start = limits["start"]
    cold, warm = (f"{start[f'{name}_s']:.{digits}f} s" for name, digits in (("cold", 1), ("warm", 2)))
    return (
        "nanoGPT CPU, whole processes: from an empty kernel cache to the end of the first training step "
        f"{judged(cold, start['cold_s'] <= 20)} (asked for: 20), from a full one "
        f"{judged(warm, start['warm_s'] <= 1.5)} (1.5). `import fastllm` takes {start['import_s']:.2f} s, with the "
        f"model {start['import_model_s']:.2f} s, NumPy alone {start['numpy_s']:.2f} s; `fastllm --help` "
        f"{start['help_s']:.2f} s.\n"
    )


def original_text(original: list[Record]) -> str:
    job = "25 facts and 53 dialogues, one row an update, 7,800 updates (`benchmarks/original_job.py`)"
    lines = [f"{job}; asked for: 4 s.\n"]
    for record in original:
        seconds = judged(f"{record['seconds']:.1f} s", record["backend"] != "numba" or record["seconds"] <= 4)
        low, *_, high = statistics.quantiles(record["update_ms"], n=5)
        middle = statistics.median(record["update_ms"])
        lines.append(
            f"- {record['backend']}: {seconds} for {record['updates']} updates, each {middle:.2f} ms "
            f"({low:.2f}-{high:.2f}), the median of the turns and its range"
        )
    return "\n".join([*lines, "", PROSE["The original's job"]])


def sequence_chart(limits: Record) -> str:
    points = [(record["sequences"], record["ms"]) for record in limits["sequences"]]
    return chart("time of a step (ms) by number of sequences", "sequences of 64 tokens", [("time", points)])


def context_chart(limits: Record) -> str:
    times = [(record["tokens"], record["ms"]) for record in limits["context"]]
    memory = [(record["tokens"], record["mb"]) for record in limits["context"]]
    return chart("time of a step (ms) and peak memory (MB) by context", "tokens", [("time", times), ("memory", memory)])


def chart(title: str, x_label: str, curves: list[tuple[str, list[tuple[float, float]]]]) -> str:
    right = max(x for _, points in curves for x, _ in points)
    top = 1.1 * max(y for _, points in curves for _, y in points)
    power = 10 ** (len(str(int(top))) - 1)
    step = power if top > 3 * power else max(1, power // 5)
    colors = (svg.TRAINING, svg.VALIDATION)
    drawn = [(name, color, points) for (name, points), color in zip(curves, colors, strict=False)]
    heights = [(height, str(height)) for height in range(0, int(top), step)]
    return svg.render(title, drawn, [], right, top, [right * part / 8 for part in range(9)], heights, x_label)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    parser.add_argument("--measured", type=Path, default=here / "measured", help="folder of them")
    parser.add_argument("--docs", type=Path, default=here.parent / "docs")
    parser.add_argument("--readme", type=Path, default=here.parent / "README.md")
    arguments = parser.parse_args(argv)
    names = ("peers", "limits", "original", "generate", "generate-float16", "quantization")
    measured = [read(arguments.measured / f"{name}.json") for name in names]
    limits = measured[1]
    others = [read(path) for path in sorted(arguments.measured.glob("other-*.json"))]
    files = {
        "performance.md": page(*measured, others),
        "performance-sequences.svg": sequence_chart(limits),
        "performance-context.svg": context_chart(limits),
    }
    for name, text in files.items():
        write_text(arguments.docs / name, text)
    readme = arguments.readme.read_text(encoding="utf-8")
    write_text(arguments.readme, put_between(readme, BEGIN, END, summary(measured[0], measured[3])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
