"""Table and plot of the benchmark on a GPU, from its results."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

DRY = "Dry run on a CPU: the numbers mean nothing"
ALIGNED = (
    "lit_pref, padded layout",
    "lit_pref, live reference",
    "lit_pref, compiled blocks",
    "lit_pref, gradient checkpointing",
    "lit_pref, head split",
    "TRL",
    "TRL, no metrics",
    "TRL, live reference",
    "TRL, Liger layers",
    "TRL, torch.compile",
    "TRL, gradient checkpointing",
    "TRL as installed",
    "TRL, reward model",
)
"""The contenders that should have lit_pref's losses: the same objective on the same pairs in the same batches."""
FP32, BF16 = 5e-4, 5e-2
"""Tolerances of the loss of a step. AdamW divides a gradient by its size, so that rounding moves weights too."""
HEADS = """TRL rounds weights and logits to bf16. lit_pref's logits are in fp32: in `bf16`, which `auto` is on a GPU, it
rounds weights; in `split` and `fp32` it does not. Time and error belong together:"""
MEMORY = 0.2  # how far a prediction of memory may be from the measured peak
COLUMNS = (
    ("pairs/s", "pairs_per_s", ".3g"),
    ("tokens/s", "tokens_per_s", ".3g"),
    ("ms a step", "median_step_s", "ms"),
    ("peak GiB", "peak_gib", ".3g"),
    ("of matmul peak", "share_of_matmul_peak", "%"),
    ("start s", "start_s", ".3g"),
)

HEAD = """A cell `0.5B-c` is the model and the lengths. Models are random, with the shapes of Qwen2.5-0.5B and -1.5B.
Lengths: **a** prompts of 512 tokens ± 12 % and responses of 128 ± 25 %; **b** 128 ± 25 % and 256 ± 25 %; **c**
log-normal, prompts with median 180 and sigma 0.9 and at most 1024, responses 150 and 0.8 and at most 512; **16k**
15,360 ± 5 % and 1024 ± 25 %. A step has 16 pairs (1.5B: 8; losses-fp32: 4; 16k: 2), in bf16 under autocast with
weights, gradients and AdamW's state in fp32, or all in fp32 where the cell says so. Contenders train in turns of 1 to
4 steps on the same pairs in the same batches, the first turn not counted; times are medians over turns. Each side has
the same number of processes that prepare batches. References are stored, on both sides, unless they are called live.
TRL grouped by length reads batches of similar lengths from the same distribution; its time is by tokens. A contender
that runs out of memory runs again alone, and if that is not enough with gradient checkpointing. The contenders of
0.5B-c-more, TRL with Liger's layers and the compiled ones are compared with the lit_pref of 0.5B-c, on the same pairs
in another process.

Tokens are those of prompts and both responses, each once and without padding. The share of the matmul peak counts
6 FLOP a weight and token (4 with LoRA), the head's for responses only. Memory is the contender's own: weights,
gradients, optimizer state and activations. Start is the time until the end of the first turn: loading, scores of
references, compilation. Losses may differ by 5e-4 in fp32 and 5e-2 in bf16, and a predicted peak of memory by 20 %
from the measured one; larger differences are in bold."""


def write(results: dict[str, Any], folder: Path, plot: bool = True) -> str:
    """Write JSON, table and plot, each whole or not at all; return the table."""
    text = page(results)
    for name, content in (("gpu.json", json.dumps(results, indent=1) + "\n"), ("gpu.md", text)):
        unfinished = folder / f"{name}.part"
        unfinished.write_text(content, encoding="utf-8")
        unfinished.rename(folder / name)
    if plot:
        draw(results, folder / "gpu.png")
    return text


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown: one table of contenders, and what else the cells measured."""
    return "# lit_pref against TRL on one GPU\n\n" + tables(results)


def tables(results: dict[str, Any]) -> str:
    """Return the page without its title."""
    about, cells = results["about"], results["cells"]
    words = ", ".join(f"{name} {value}" for name, value in about.items() if name != "dry" and value is not None)
    lines = [f"**{DRY}.**", ""] if about["dry"] else []
    lines += [words, "", HEAD, "", *_contenders(cells), "", *_other_numbers(cells), *_breakdowns(cells), *_heads(cells)]
    lines += [*_memory(cells), *_attention(cells), *_states(cells)]
    return "\n".join(lines).rstrip() + "\n"


def compared(cells: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Yield cell, contender, its numbers and those of lit_pref on the same pairs, empty if there are none."""
    for cell, result in _measured(cells, "contenders"):
        against = cells.get(result.get("against"), {}).get("result", result)
        own = next(iter(against["contenders"].values()))
        for name, taken in result["contenders"].items():
            yield cell, name, taken, own


def relative_time(name: str, taken: dict[str, Any], own: dict[str, Any]) -> float | None:
    """Return how many times lit_pref's time a contender takes, if both are known."""
    if name.endswith("grouped by length"):  # its steps have other pairs
        return _ratio(own.get("tokens_per_s"), taken.get("tokens_per_s"))
    return _ratio(taken.get("median_step_s"), own.get("median_step_s"))


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def loss_difference(own: dict[str, Any], rival: dict[str, Any]) -> float | None:
    """Return the largest difference of the losses of a step."""
    if not own.get("losses") or len(own["losses"]) != len(rival.get("losses", [])):
        return None
    differences = [abs(a - b) for a, b in zip(own["losses"], rival["losses"], strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.nan


def verdict(cell: str, difference: float) -> str:
    """Return the difference of losses, in bold with the tolerance if it is above it."""
    tolerance = FP32 if cell.endswith("fp32") else BF16
    return f"{difference:.0e}" if difference <= tolerance else f"**{difference:.0e} > {tolerance:g}**"


def _measured(cells: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, outcome in cells.items():
        if key in outcome.get("result", {}):
            yield name, outcome["result"]


def _contenders(cells: dict[str, Any]) -> list[str]:
    titles = [title for title, _, _ in COLUMNS]
    lines = [f"| cell | contender | {' | '.join(titles)} | time, lit_pref = 1 | memory | largest loss difference |"]
    lines.append("|---" * (len(titles) + 5) + "|")
    for cell, name, taken, own in compared(cells):
        if "error" in taken:
            lines.append(f"| {cell} | {name} | {taken['error'][:120]} |" + " |" * (len(titles) + 2))
            continue
        values = [_value(taken.get(key), form) for _, key, form in COLUMNS]
        memory = _ratio(taken.get("peak_gib"), own.get("peak_gib"))
        values += [_value(relative_time(name, taken, own), ".2f"), _value(memory, ".2f")]
        difference = loss_difference(own, taken) if name in ALIGNED and taken is not own else None
        values.append("" if difference is None else verdict(cell, difference))
        mark = f" ({taken['form']})" if taken.get("form") else ""
        lines.append(f"| {cell} | {name}{mark} | {' | '.join(values)} |")
    return lines


def _value(value: float | None, form: str) -> str:
    if value is None:
        return ""
    if form == "ms":
        return f"{1e3 * value:.3g}"
    return f"{100 * value:.1f} %" if form == "%" else f"{value:{form}}"


def _other_numbers(cells: dict[str, Any]) -> list[str]:
    lines = []
    for cell, result in _measured(cells, "numbers"):
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in result["numbers"].items())
        lines += [f"{cell}: {numbers}.", ""]
    return lines


def _breakdowns(cells: dict[str, Any]) -> list[str]:
    lines = []
    for cell, result in _measured(cells, "steps"):
        kinds = [name.removesuffix("_s") for name in next(iter(result["steps"].values()))["numbers"]]
        lines += [
            f"## {cell}: ms of a step by kinds of kernels",
            "",
            "The kernels are those of profiled steps; the step, and the idle time in it, of steps before the profiler.",
            "",
            f"| | {' | '.join(kinds)} | waits for the device |",
        ]
        lines.append("|---" * (len(kinds) + 2) + "|")
        for name, step in result["steps"].items():
            times = " | ".join(f"{1e3 * value:.3g}" for value in step["numbers"].values())
            lines.append(f"| {name} | {times} | {sum(step['synchronizations'].values()):g} |")
        lines.append("")
        for name, step in result["steps"].items():
            places = ", ".join(f"{place} {count:g}" for place, count in step["synchronizations"].items())
            longest = ", ".join(f"`{op}` {1e3 * s:.3g}" for op, s in list(step["longest"].items())[:6])
            waits = ", ".join(f"{call} {count:g}" for call, count in step["waits"].items())
            lines += [f"{name}: longest (ms) {longest}.", *([f"It waits at {places}."] if places else [])]
            lines += [*([f"Calls that wait: {waits}."] if waits else []), ""]
    return lines


def _heads(cells: dict[str, Any]) -> list[str]:
    lines = []
    for cell, result in _measured(cells, "heads"):
        keys = list(dict.fromkeys(key for head in result["heads"].values() for key in head))
        size = f"{result['tokens']} tokens, {result['width']} wide, {result['vocabulary']} ids"
        lines += [
            f"## {cell}: {size}; errors against fp64",
            "",
            f"| | {' | '.join(keys)} |",
            "|---" * (len(keys) + 1) + "|",
        ]
        for name, head in result["heads"].items():
            values = [head.get(key, "") for key in keys]
            lines.append(f"| {name} | " + " | ".join(v if isinstance(v, str) else f"{v:.3g}" for v in values) + " |")
        lines += ["", *_time_and_error(result["heads"])]
    return lines


def _time_and_error(heads: dict[str, Any]) -> list[str]:
    """Say time and error of each head together: a head may be faster because it rounds more."""
    rival = heads.get("TRL", {})
    if "forward_s" not in rival:
        return []
    theirs = rival["forward_s"] + rival["backward_s"]
    lines = [HEADS, ""]
    lines.append(f"- TRL takes {1e3 * theirs:.3g} ms, with errors of up to {rival['logp_error']:.1g} nats.")
    for name, head in heads.items():
        if name != "TRL" and "forward_s" in head:
            own = head["forward_s"] + head["backward_s"]
            error = f"with errors of up to {head['logp_error']:.1g} nats"
            lines.append(f"- {name} takes {1e3 * own:.3g} ms, {own / theirs:.2f} times TRL's time, {error}.")
    return [*lines, ""]


def _memory(cells: dict[str, Any]) -> list[str]:
    lines = []
    for cell, result in _measured(cells, "predicted_gib"):
        parts = ", ".join(f"{name} {size:.3g}" for name, size in result["predicted_gib"].items())
        contender = result["predicted"]
        measured = result.get("contenders", {}).get(contender, {}).get("peak_gib")
        share = ""
        if measured is not None:
            ratio = result["predicted_gib"]["allocated"] / measured
            mark = "" if abs(ratio - 1) <= MEMORY else "**"
            share = f"; measured {measured:.3g}, predicted / measured {mark}{ratio:.2f}{mark}"
        lines += [f"{cell}, {contender}: `check` predicts (GiB) {parts}{share}.", ""]
    return lines


def _attention(cells: dict[str, Any]) -> list[str]:
    lines = []
    for cell, result in _measured(cells, "attention"):
        rows = result["attention"]
        bad = [row for row in rows if row["verdict"] not in ("ok", "refused")]
        lines += [f"{cell}: {len(rows)} cases, {len(bad)} with NaN or wrong values or gradients."]
        lines += [f"- {row['kernel']}, {row['dtype']}: {row['verdict']} ({row['name']})" for row in bad]
        lines.append("")
    return lines


def _states(cells: dict[str, Any]) -> list[str]:
    lines = ["## Cells", "", "| cell | | seconds | |", "|---|---|---|---|"]
    for cell, outcome in cells.items():
        why = " ".join(outcome.get("error", "").split())[:200]
        lines.append(f"| {cell} | {outcome['status']} | {outcome['seconds']:.1f} | {why} |")
    return lines


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw bars of the time and memory of other contenders on the same pairs, lit_pref = 1."""
    known = [row for row in compared(results["cells"]) if not any("error" in numbers for numbers in row[2:])]
    rows = [row for row in known if row[2] is not row[3]][::-1]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 1.4 + 0.3 * max(1, len(rows))), sharey=True)
    for axes, title in zip(panels, ("time", "peak memory"), strict=True):
        for y, (_, name, taken, own) in enumerate(rows):
            memory = _ratio(taken.get("peak_gib"), own.get("peak_gib"))
            if (value := relative_time(name, taken, own) if title == "time" else memory) is not None:
                axes.barh(y, value, color="#2a7f62" if value >= 1 else "#b5403a", height=0.7)
                axes.text(value, y, f" {value:.2f}", va="center", fontsize=8)
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.set_title(f"{title}, times that of lit_pref", fontsize=9)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [f"{cell}: {name}" for cell, name, _, _ in rows], fontsize=8)
    if results["about"]["dry"]:
        figure.suptitle(DRY, color="#b5403a", fontsize=11, fontweight="bold")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
