"""Write docs/performance.md and its charts from measurements.

    cd benchmarks/measured
    fastllm bench peers --json peers.json
    python ../limits.py --json limits.json
    python ../original_job.py --json original.json
    fastllm bench generate --json generate.json
    fastllm bench generate --cache-dtype float16 --json generate-float16.json
    python ../quantization_loss.py MODEL TEXT --json quantization.json
    python ../make_performance_page.py

Measurements are kept in benchmarks/measured, so that the page can be written again; other-*.json there are the race
against PyTorch as other machines ran it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from fastllm.atomic import write_text
from fastllm.bench import three_digits
from fastllm.training import svg

Record = dict[str, Any]

# What holds a case back, beside the multiply-adds themselves. Found by profiling; no number here is measured by a run.
BOUNDS = {
    "tiny, one row": (
        "24 rows leave little to multiply. On Intel the products are 42% of the time, Adam's pass, from and to the "
        "last cache, 24%, Python and the starting of about thirty parallel regions (1 to 4 us each, as near as the two "
        "cores are) 22%"
    ),
    "tiny, real lengths": "the multiply-adds; then attention over short sequences, whose blocks are mostly edges",
    "nanoGPT CPU": "the multiply-adds; then attention over 64 tokens, GELU and LayerNorm, about a sixth together",
    "nanoGPT char": "the multiply-adds",
    "GPT-2 124M, short": "the multiply-adds; Adam's pass over 3.5 GB; reading each weight from memory for 256 rows",
    "GPT-2 124M, long": "the multiply-adds",
    "Llama-style 15M": "the multiply-adds, two thirds of them in the head of 32,000 columns",
    "attention alone": (
        "the multiply-adds, seven products where six are counted, since backward computes the scores again: forward "
        "they take 75% of the time, at 97% of the peak, the softmax 14% and packing 9%; backward 80%, 4% and 5%"
    ),
}

# What was tried where the target is missed; gains are ratios of two versions that took turns, of a step or of what is
# named.
TRIED = {
    "tiny, one row": (
        "kept: few rows packed in the weight's place, or a small weight read where it stands (products by input "
        "1.4x), products cut only where packing is worth it (5-15%). Dropped: the embedding's gradient cleared on all "
        "threads (NumPy is as fast), a transposed A read where it stands (small products 9% faster, large ones 11% "
        "slower) or packed by the tile that meets it first (5% faster, 16% slower)"
    ),
    "tiny, real lengths": (
        "kept: blocks transposed in registers, rows of scratch not packed, panels scaled while they are packed "
        "(attention 1.4x), zero for what would be a subnormal probability (attention's gradient 4.5x, on Intel). "
        "Dropped: asking for memory ahead while A is packed (nothing on Intel; on AMD products 1.03x, steps 0.97x to "
        "1.01x)"
    ),
    "nanoGPT CPU": (
        "kept: gradients of weights in blocks as deep as lets all columns fit, a transposed A packed once (4-7%), "
        "register tiles of 12 rows, none of whose addresses waits for another (products 1.2x, on Intel). Dropped: a "
        "second line asked for in each step of the tile (20% slower: load ports), rows packed several steps at a time, "
        "or in parts of 8 and 4 (nothing), a transposed A read where it stands if its rows are short (5% to 13% faster "
        "up to 512 bytes, 20% slower at 2 KB), LayerNorm that takes over lines before it writes (nothing), an erf "
        "without exp and division (GELU 1.3x, its derivative 0.8x)"
    ),
    "nanoGPT char": (
        "dropped: columns cut for products by input (5% faster alone, steps 1% slower), huge pages (nothing). On "
        "Intel, PyTorch's products are as fast as these: 88 to 93% of the peak at 1024x768x3072"
    ),
    "GPT-2 124M, long": (
        "kept: lower tiles for rows that share a set of the first cache (products by input 1.1x on AMD). Dropped: a "
        "tile's rows copied first (half of that)"
    ),
    "Llama-style 15M": "dropped: memory asked for nearer or less near while packing (nothing)",
    "attention alone": (
        "kept: scratch at cache lines (1%), the softmax's maxima of all rows first (forward 4%), its whole vectors "
        "without a mask (3%). Dropped: huge pages (nothing), blocks of 96 to 384 keys (nothing or slower), of 512 "
        "queries (forward 4% faster, but short prompts would be cut unevenly among threads), backward in blocks of 48 "
        "to 192 queries and 192 to 384 keys (nothing), a block's rows asked for during the one before it (nothing, "
        "though to fetch them is 6% of backward on AMD)"
    ),
}

METHOD = """## Method

Each contender runs in a process of its own, with the same number of threads. All load the same random weights (biases
and norms too) and see the same batch. Before anything is timed, losses and gradients must agree to 2e-5, the losses of
three updates to 1e-3, and the weights after them to 5e-3 of what has changed; a case that fails is not timed. Then the
contenders take turns, 15 rounds; a turn lasts 0.3 s or one step, with pauses so that no thread of another is still
spinning. The figures are medians, the range is the 20th to the 80th percentile, the ratio is against the better
PyTorch. A probe measures the multiply-add peak in each round: registers only, nothing loaded.

A step is forward, loss, backward, clipping at norm 1.0 and AdamW. PyTorch is used as its users would: nanoGPT's
modules, `scaled_dot_product_attention`, `AdamW(fused=True)`, eager and `torch.compile`. Sequences of different lengths
are padded for it. Floating-point operations are 6 x matrix parameters x tokens, and 12 for each pair of tokens that the
causal mask lets through and each column of attention. *At the peak* is the ratio of a step that did just these at the
measured peak of these cores in float32, and nothing else: it bounds what any target can ask for.

Machines are shared, and their clocks and their cores' distances change: compare within a table.
"""


ORIGINAL_BOUNDS = """\
By itself, not by turns with the twins, whose arrays then push these out of the caches, the job took 5.6 to 5.8 s. There
an update of a dialogue takes 0.8 ms: products 0.43, of which 0.3 are multiply-adds at the peak, AdamW, whose four
arrays come from the last cache, 0.16, Python and calls 0.15, attention 0.06. On Intel it takes 1.0 to 1.2 ms, 0.2 of
them multiply-adds at the peak. On another AMD machine it depended on where the two cores were. While they share a
cache, a region starts in 1.5 to 2.2 us and an update takes 0.65 to 1.1 ms. A shared host moves them, for seconds at a
time, to where they share none: then a region starts in 3 to 4 us, a line that both have read is written to 6 to 8 times
more slowly, and an update took 2.6 to 3.4 ms, a third of it Adam's. Tried. Kept: Adam takes over the lines of the
parameters before it writes them (there 1.1 ms become 0.4; where a cache is shared, nothing is lost), and so does what
sets gradients to zero, on all threads (0.033 ms become 0.013); small steps run on one thread while that is faster,
which is measured meanwhile (there 1.3 to 1.5 ms become 0.8 to 0.9 in the facts, 1.7 to 2.0 become 1.2 to 1.5 in the
dialogues; elsewhere it costs 2%). Eight whole jobs by turns without and with that: 6.6 to 14.8 s, 9.1 in the mean,
became 6.8 to 8.7 s, 7.5 in the mean. Dropped: Adam's and the norm's chunks in the order in which the products cut the
matrices (where no cache is shared 3% of an update, else nothing), asking for the lines to be written (1.2x, where one
store to each gives 3x).
"""

GENERATION_METHOD = """Each contender is in a process of its own, with the same number of threads, and they take turns:
15 rounds of 64 tokens after 128, and 7 of a prompt of 512. The figures are medians, the range is the 20th to the 80th
percentile. Before anything is timed, the logits after the prompt, whose last tokens are decoded, must agree: with
transformers to 1e-3, with llama.cpp as far as it goes, for it rounds what is multiplied with quantised weights to 8
bits, fastllm to 16. llama.cpp has its flash attention, as it does by itself; its Python package switches that off
unless asked, and is then slower by up to a quarter. All read the same GGUF files, which fastllm wrote; transformers has
their weights in float32. *Beyond* is the peak of resident memory without the file and the cache of keys and values;
Python, NumPy and the compiler's library alone are 90 MB of it.
"""

GENERATION_BOUNDS = """\
What is missed (bold), and what bounds it. One text waits for memory most of the time, on both sides; the rest is about
0.2 ms a token of Python and calls, and attention, which reads its own memory. Eight texts take eight times the
multiply-adds of one, and read eight caches: with weights of 8 or 4 bits one text takes so little time that eight take
more than twice that. *At the peak* is what eight would reach if these multiply-adds, at the peak in float32, were all
there is to do. In a run by themselves on AMD, eight texts of Q8_0 took 12.6 ms a token each: 8.6 products, 3.5
attention, at the speed of memory. One text takes 4.6: for four times as much, the products would have to take 5. They
are done in bytes, for 32 weights and eight texts 8 multiply-adds of 512 bits, 4 more of the scales, and as many
conversions and shifts: 12 cycles where they are bound by multiplying alone, 16 as measured. In float32 it would be 16
multiply-adds and the unpacking, 22 cycles. How many times transformers' speed one text has in F32 depends on memory
alone: on Intel transformers reads 19 GB/s of the 28 there are, so that none can decode three times as fast; on AMD it
reads 11, and fastllm what there is, 27 GB/s on one day and 39 on another, which was 3.44 times.

On AMD, one text of Q4_0 takes 3.3 ms in kernels: 2.7 products, 0.5 attention, 0.1 the write of its keys, 0.1 all else;
and 0.2 of Python and calls. Its products read 28 GB/s, as those of all kinds do. What is left to win is outside them:
with F16, llama.cpp as a whole reads memory as fast as fastllm's products alone.

Tried. Kept: weights of a few bits multiplied as bytes with x rounded to 16 bits, where the CPU can (one text 1.0x to
1.3x, by kind; eight 1.1x to 1.3x); beside one text in a vector, four rows of weights, and two such vectors together
(one text of Q4_0 and Q5_0 1.35x to 1.45x, Q8_0 1.0x to 1.4x, Q4_K 1.7x, Q6_K 1.4x); what is asked for ahead, line after
line behind the last row, in place of behind each (eight texts of Q8_0 1.05x); four rows of weights with four or eight
of x, two otherwise (1.2x), asking for weights and for keys ahead (2x), and into the second cache, not the first (on AMD
F32 1.25x, eight texts and attention 1.15x; float16 keys and values four groups ahead, not one, 1.1x to 1.3x), 5 KB
ahead, not 4 (eight texts of F32 1.2x on AMD; 2 to 16 KB make no difference on Intel), keys dimension by dimension
(attention 1.1-1.3x). Not even tried, as logits are to be exact to a few parts in a hundred thousand: x rounded to 8
bits, and one scale for a whole row of x, where a few numbers are a thousand times the others. Dropped: one scale for 32
numbers of x (twice the error of one for eight), words of 16 bits in place of two bytes (one text 0.8x, eight the same),
four weights in all lanes and a text in each (eight 0.75x), eight rows of weights with eight of x (0.9x), the next
attention's keys and values asked for during the products, where memory is idle (attention takes 0.7 times as long,
products 1.07 times: nothing); in float32 three rows of weights with eight of x (spills), one with eight (F16 0.7x),
four accumulators a product (nothing), scales made float32 in a pass of their own (Q4_1 1.1x, Q4_0 and Q8_0 0.9x), the
sums of sixteen outputs added up together for one text (nothing); rows of weights beside two texts (0.8x); threads that
take outputs as they finish, not halves (0.7-1.0x, perhaps as each asks ahead for what the other then takes), asking for
weights as what is not read again (F32 0.55x on Intel; on AMD mostly 1.0x to 1.05x, where the same code twice differed
by 5 to 8%), 1 KB ahead (one text of F16 1.0x to 1.1x, eight 0.9x).
"""

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
            METHOD,
            "## What bounds each case\n",
            *(bound(case) for case in peers["cases"]),
            "\n## Memory\n",
            "Peak resident memory of the whole process, imports included. Kernels come from the disk, where they are "
            "before the race; so may what torch.compile has made before.\n",
            memory_table(peers),
            "## How close to the machine's limits\n",
            limits_text(limits),
            "## Generating, against llama.cpp and transformers\n",
            f"{generate['model']['name']}, {generate['threads']} threads; {generate['machine']}.\n",
            generation_table(generate, peak_of(peers)),
            halves_text(halves),
            GENERATION_METHOD,
            GENERATION_BOUNDS,
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


def bound(case: Record) -> str:
    """What holds a case back and, where it misses its target, what was tried."""
    text = f"- **{case['case']}**: {BOUNDS[case['case']]}."
    if case["ratio"] < case["target"] and case["case"] in TRIED:
        text += f" Tried: {TRIED[case['case']]}."
    return text


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
        together = f"{row['together']['median']:.0f} ({row['together_ratio']:.1f}x of one)" if row["together"] else ""
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
        one = row["together"]["median"] / row["together_ratio"]
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
    eight = ", ".join(f"{kind} {rows[kind, 'fastllm']['together']['median']:.0f}" for kind in DECODE_TARGETS)
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
    return "\n".join([*lines, "", ORIGINAL_BOUNDS])


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--measured", type=Path, default=here / "measured", help="folder of them")
    parser.add_argument("--docs", type=Path, default=here.parent / "docs")
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
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
