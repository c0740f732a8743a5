"""Writes docs/performance.md and its plot from docs/performance.json, the results of the benchmark."""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from bench_goals import GOALS, loss_difference, measured
from bench_gpu_report import draw, tables
from matplotlib import pyplot

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "performance.json"
COLOURS = {"met": "#2a7f62", "target met": "#2a7f62", "floor met": "#d9a441", "MISSED": "#b5403a"}

HEAD = """# Performance

Written from `performance.json` by `make bench`. {machine}

Each comparison runs in one process on one pinned core with one thread: lit_pref through its own `fit`, TRL through its
own `train`, from the same weights, on the same pairs in the same batches, with fused AdamW and a gradient norm clipped
to 1, in fp32, without dropout. The two loops alternate step by step, collation included. Times are CPU time of the
process, medians over {timed} steps after the first; ratios are medians over steps, each on the same pairs.
Memory is the peak within a step, not counting weights and optimizer state, but with gradients.

- Lengths: **a** prompts 512 ± 12 %, responses 128 ± 25 %; **b** prompts 128 ± 25 %, responses 256 ± 25 %; **c**
  log-normal, prompts with median 180 and sigma 0.9 and at most 1024, responses 150 and 0.8 and at most 512.
- **row-2k** (also 4k, 8k): one pair of that many tokens a step, half of them the prompt; a vocabulary of 512.
- **held-out**: no goal was set on it. SmolLM2's shape at half its width and depth (9 heads that share 3, a tied head, a
  vocabulary of 49,152), with the lengths of real dialogues (Anthropic's harmless-base): most are short, a few long.
- Models: random Llamas, **s** 6 layers of 256, **m** 12 of 512; vocabularies of 32,000 and 128,256.
- **TRL-compact** is TRL {trl}, changed to project response positions only, as it does on a GPU; without Triton it
  projects all positions. Its references are precomputed like ours, gradient checkpointing is off, its metrics are on.
- **TRL as installed** keeps its defaults: all positions, a live reference, gradient checkpointing. Only its bf16 is
  replaced by fp32, and no pair is cut to 1024 tokens, so that the work is the same.
- Metrics off: TRL's head computes log-probs only, without entropy, mean logit and top-1 of every token.
- Tuned malloc: both sides keep freed memory in the process (`MALLOC_TRIM_THRESHOLD_` and similar settings). All runs
  use one arena.
- With two and three references the objective is MRPO, so the losses differ from those with one reference.
- `generate` writes 32 tokens for each of 64 prompts, and puts texts and log-probs into a file. The bare loop over
  transformers' `generate` sorts the prompts by length, samples and decodes, at the batch size that is best for it, in
  turns. Greedily both write the same texts.
- Rewards: {pairs:g} pairs, prompts of 512 to 1024 tokens and responses of 100 to 250, from texts to scores by the judge
  of `judge` and `evaluate`. The rival is a loop over `AutoModelForSequenceClassification` in batches of 16 responses,
  in the order of the file or sorted by length, in turns. All scores agree to 1e-4. Times grow in proportion to the
  number of pairs; in a larger file, sorting leaves less padding.

All of this is of a CPU. What is known of a GPU is in the last section.

If the head takes most of a step (case b, and vocabularies of 128k; see the profiles at the end), and TRL's metrics are
off and its memory is kept, both sides are bound by the same four multiplications of hidden states with the head's
weights. The remaining gain comes from sharing prompts and avoiding padding, and is 1.1 to 1.5 times. The floor of 1.6
for these settings is out of reach there.
"""


GPU = """`tools/bench_gpu.py` (`make bench-gpu`) measures on one H100 or H200, in at most 8 minutes. It compares `fit`
with TRL's trainers on random models with the shapes of Qwen2.5-0.5B and -1.5B, in bf16: lengths **a**, **b** and **c**,
and pairs of more than 16,000 tokens with gradient checkpointing; full fine-tuning and LoRA; one and three references,
stored and live; both layouts; lit_pref and TRL with compiled models; TRL without its metrics, grouped by length, with
Liger's layers, and as installed. It measures pairs and tokens per second; peak memory, and in three cells (0.5B, 1.5B
with LoRA and gradient checkpointing, long pairs) beside it the memory that `check` predicts; the share of the device's
matmul peak; a step by kinds of kernels, the device's idle time, and what waits for the device in it; losses over 20
steps in fp32 and bf16; the head alone, in time and error, reward models, and `generate`.

Each contender of a cell trains, with the steps that are not timed in brackets, 20 (4) steps in `0.5B-c`, `0.5B-c-more`,
`losses-fp32`, `0.5B-c-liger` and `0.5B-c-compiled`; 12 (3) steps in `1.5B-c`, `0.5B-b`, `reward-0.5B-c`,
`0.5B-c-references` and `0.5B-a`; 10 (1) steps in `1.5B-c-lora` and `memory-0.5B-c`; and 5 (1) steps in `0.5B-16k`.

The whole plan fits into that time by the estimates of its cells, which `--list` names. Each cell has a process and a
time limit of its own. One that fails or runs out of time is reported with what it had measured until then, and the rest
is measured; one that no longer fits is skipped and named. JSON and table are written after every cell. `--dry_run`
takes all of it through tiny models on a CPU, in a minute, and its numbers mean nothing. For a machine with torch and
Triton but without a package index, this gathers what else is needed (17 MB) here and uses it there:

    tools/wheels_for_gpu.sh .whl
    tools/wheels_for_gpu.sh --install .whl
    PYTHONPATH=.whl/site:. python3 tools/bench_gpu.py --minutes 8 --out runs/bench/gpu

`python tools/write_performance.py --gpu runs/bench/gpu` puts the results on this page.
"""
NO_GPU = """**No figure of a GPU exists yet.** No part of lit_pref has run on one, and the plan's estimates of time are
guesses. Its dry run went from end to end on 2026-11-29 on a CPU, with torch 2.13 on Python 3.11; with those wheels and
torch 2.11 on Python 3.12 an earlier plan did."""


def page(results: dict[str, Any]) -> str:
    """The page's text."""
    cells = results["cells"]
    pairs = cells.get("reward-score", {"numbers": {"pairs": math.nan}})["numbers"]["pairs"]
    trl = results["machine"]["trl"]
    lines = [HEAD.format(machine=_machine(results), trl=trl, timed=_timed(cells), pairs=pairs)]
    lines += ["## Goals", "", "![ratios](performance.png)", "", *table(cells), ""]
    lines += ["## Steps", "", *_steps(cells), ""]
    lines += _numbers(cells, "loop", "A step of the loop alone", "CPU ms")
    lines += _numbers(cells, "start", "Start", "CPU s")
    lines += _numbers(cells, "reward-score", "Rewards of pairs", "CPU s")
    lines += _numbers(cells, "generate", "Responses, sampled", "CPU s")
    lines += _numbers(cells, "generate-greedy", "Responses, greedy", "CPU s")
    lines += _processes(cells)
    lines += _profiles(cells)
    lines += ["", *_gpu(results.get("gpu"))]
    return "\n".join(lines).rstrip() + "\n"


def table(cells: dict[str, Any]) -> list[str]:
    """The goals as a table, those that have not been measured too."""
    values = dict(measured(cells))
    lines = ["| goal | measured | floor | target | |", "|---|---|---|---|---|"]
    for goal in GOALS:
        sign = "≤ " if goal.at_most else ""
        target = "" if goal.target is None else f"{sign}{goal.target:g}"
        got = f"{values[goal]:.3g} {goal.unit}".rstrip() if goal in values else ""
        verdict = goal.verdict(values[goal]) if goal in values else "not measured"
        lines.append(f"| {goal.name} | {got} | {sign}{goal.floor:g} | {target} | {verdict} |")
    return lines


def plot(cells: dict[str, Any], path: Path) -> None:
    """Bars of the ratios, with marks where floor and target are."""
    rows = [(goal, value) for goal, value in measured(cells) if goal.unit == "x" and not goal.at_most][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.3 * len(rows)))
    for y, (goal, value) in enumerate(rows):
        axes.barh(y, value, color=COLOURS[goal.verdict(value)], height=0.7)
        axes.plot([goal.floor] * 2, [y - 0.4, y + 0.4], color="black", linewidth=2)
        if goal.target is not None:
            axes.plot([goal.target] * 2, [y - 0.4, y + 0.4], color="black", linewidth=1, linestyle=":")
        axes.text(0, y, f" {value:.2f}", va="center", fontsize=8, color="white", fontweight="bold")
    axes.set_yticks(range(len(rows)), [goal.name for goal, _ in rows], fontsize=8)
    axes.set_xlabel("times less than the rival (floor solid, target dotted)")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.margins(x=0.08, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def write(results_file: Path) -> None:
    """Page and plot beside the results."""
    results = json.loads(results_file.read_text(encoding="utf-8"))
    results_file.with_suffix(".md").write_text(page(results), encoding="utf-8")
    plot(results["cells"], results_file.with_suffix(".png"))
    if "gpu" in results:
        draw(results["gpu"], results_file.with_name(f"{results_file.stem}_gpu.png"))


def _machine(results: dict[str, Any]) -> str:
    about = results["machine"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "transformers", "trl", "lightning"))
    cells = results["cells"].values()
    dates, busiest = sorted({cell["date"] for cell in cells}), max(cell["load"] for cell in cells)
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    load = f"load average before a cell at most {busiest:g}"
    return f"{about['cpu']}, {about['cores']} cores; Python {about['python']}, {versions}; {when}, {load}."


def _timed(cells: dict[str, Any]) -> str:
    numbers = {len(c["cpu_s"]) for cell in cells.values() for c in cell.get("contenders", {}).values() if "losses" in c}
    return " or ".join(map(str, sorted(numbers)))


def _steps(cells: dict[str, Any]) -> list[str]:
    lines = ["| cell | pairs per step | padded / real tokens | contender | CPU s | MiB | largest loss difference |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, cell in cells.items():
        for contender, taken in cell.get("contenders", {}).items():
            if "cpu_s" not in taken:
                continue
            seconds, memory = statistics.median(taken["cpu_s"]), taken["memory_mib"]
            padding = cell["tokens"]["padded"] / cell["tokens"]["separate"]
            mib = f"{statistics.median(memory):.0f}" if memory else ""
            difference = loss_difference(cell, contender)
            agrees = "" if difference is None else f"{difference:.0e}"
            row = (
                f"| {name} | {cell['work']['pairs']} | {padding:.2f} | {contender} | {seconds:.4g} | {mib} | {agrees} |"
            )
            lines.append(row)
    return lines


def _numbers(cells: dict[str, Any], name: str, title: str, unit: str) -> list[str]:
    if name not in cells:
        return []
    numbers = cells[name]["numbers"]
    lines = [f"## {title}", "", f"| | {unit} |", "|---|---|", *(f"| {k} | {v:.3g} |" for k, v in numbers.items()), ""]
    if calls := cells[name].get("calls"):
        shares = ", ".join(f"`{call}` {100 * share:.0f} %" for call, share in calls.items())
        lines += [f"lit_pref's functions with their callees, under cProfile: {shares}.", ""]
    return lines


def _gpu(results: dict[str, Any] | None) -> list[str]:
    measured = NO_GPU if results is None else f"![ratios](performance_gpu.png)\n\n{tables(results)}"
    return ["## On a GPU", "", GPU, *measured.replace("\n## ", "\n### ").splitlines()]


def _processes(cells: dict[str, Any]) -> list[str]:
    if "processes" not in cells:
        return []
    rows = [f"| {name} | {taken['process_mib']:.0f} |" for name, taken in cells["processes"]["contenders"].items()]
    return ["## Memory of the whole process", "", "| a-s-32k | MiB |", "|---|---|", *rows, ""]


MULTIPLY_ADDS = """Multiply-adds are those of products of matrices, over the fewest that a step of full fine-tuning
can have: every prompt read once, no padding, three products for each weight. What is above 1 is the head, which
computes its logits a second time in the backward pass instead of keeping them."""


def _profiles(cells: dict[str, Any]) -> list[str]:
    profiles = {name: cell for name, cell in cells.items() if "operators" in cell}
    if not profiles:
        return []
    shares = [name for name in next(iter(profiles.values()))["numbers"] if name != "step_s"]
    lines = ["## Time of one lit_pref step", "", f"| | CPU s, profiled | {' | '.join(shares)} | multiply-adds |"]
    lines.append("|---|---|" + "---|" * len(shares) + "---|")
    for name, cell in profiles.items():
        numbers = cell["numbers"]
        parts = " | ".join(f"{100 * numbers[share]:.0f} %" for share in shares)
        over_least = f"{cell['gemms_over_least']:.3g} x" if "gemms_over_least" in cell else ""
        lines.append(f"| {name} | {numbers['step_s']:.3g} | {parts} | {over_least} |")
    lines += ["", MULTIPLY_ADDS]
    for name, cell in profiles.items():
        operators = ", ".join(f"`{op}` {100 * share:.0f} %" for op, share in cell["operators"].items())
        lines += ["", f"{name}, operators by self time: {operators}."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--gpu", type=Path, metavar="FOLDER", help="take the results of bench_gpu in FOLDER up first")
    options = parser.parse_args()
    if options.gpu is not None:
        results = json.loads(options.results.read_text(encoding="utf-8"))
        results["gpu"] = json.loads((options.gpu / "gpu.json").read_text(encoding="utf-8"))
        options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write(options.results)


if __name__ == "__main__":
    main()
