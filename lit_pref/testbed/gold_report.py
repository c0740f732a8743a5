"""Compares the gold reward of the policy's responses before and after training."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from lit_pref.models.spec import ModelSpec
from lit_pref.testbed.make import evaluation_prompts
from lit_pref.testbed.samples import GoldEvaluation, Interval, compare, evaluate
from lit_pref.testbed.world import join_words


def gold_report(testbed: Path, trained: Path, shown: int = 3) -> str:
    """Compare the trained policy with the testbed's by gold reward and win rate, and show some responses of both."""
    prompts = evaluation_prompts(testbed)
    before, after = (_evaluate(folder, prompts) for folder in (testbed / "policy", trained))
    change = compare(after, before)
    table = Table(
        title=f"Gold reward of 0 to 10 on {len(prompts)} held-out prompts, 95 % intervals", title_justify="left"
    )
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("sampled responses", f"{before.g1:.2f}", f"{after.g1:.2f}", _signed(change.g1))
    table.add_row("greedy responses", f"{before.g0:.2f}", f"{after.g0:.2f}", _signed(change.g0))
    table.add_row(
        "win-rate of sampled responses", "", f"{change.win_rate.mean:.2f} ± {change.win_rate.half_width:.2f}", ""
    )
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    lines = [captured.get().rstrip(), ""]
    for k in range(shown):
        lines += [f"prompt  {prompts[k].text}"]
        lines += [
            f"  {name}  {join_words(e.greedy[k])}  (gold {e.greedy_gold[k]:.1f})"
            for name, e in (("before", before), ("after ", after))
        ]
    return "\n".join(lines)


def _evaluate(folder: Path, prompts: list) -> GoldEvaluation:
    policy = ModelSpec(path=str(folder))
    return evaluate(policy.build(), policy.load_tokenizer(), prompts)


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.2f} ± {interval.half_width:.2f}"
