"""The outcome of an evaluation, and its files: numbers as JSON, items as Parquet, an HTML page, TensorBoard scalars."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_pref.judging import report
from lit_pref.judging.comparison import Comparison, Interval
from lit_pref.judging.pair_evaluation import JudgedPair, PairEvaluation
from lit_pref.metrics.records import Records, write_parquet
from lit_pref.pages.html import plain


@dataclass
class Outcome:
    """The results of an evaluation.

    `benchmarks` has the numbers of each benchmark by name, the most important first. `pairs` and `evaluation` are of
    protocols that compare responses. `items` and `items_against` have a record for each item. `settings` says what was
    evaluated, and how. `examples` are a heading and items that the page shows as text.
    """

    title: str
    settings: dict[str, Any]
    items: Records
    benchmarks: dict[str, dict[str, Interval]] = field(default_factory=dict)
    pairs: Sequence[JudgedPair] = ()
    evaluation: PairEvaluation | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    items_against: Records | None = None
    notes: list[str] = field(default_factory=list)
    examples: tuple[str, list[report.Example]] = ("", [])

    def verdict(self) -> str:
        """Return the result in one sentence."""
        for benchmark, found in self.benchmarks.items():
            name, value = next(iter(found.items()))
            return f"{benchmark}: {'' if name == benchmark.lower() else f'{name} '}{report.interval(value)}."
        return report.headline(self.evaluation) if self.evaluation else "There are no numbers."

    def table(self) -> str:
        """Return all numbers as lines for a terminal."""
        blocks = {
            name: {key: report.interval(value) for key, value in found.items()} for name, found in self.numbers.items()
        }
        if self.evaluation is not None:
            blocks["Pairs"] = report.numbers(self.evaluation)
        width = max(len(name) for block in blocks.values() for name in block)
        lines = [
            line
            for block, rows in blocks.items()
            for line in (block, *(f"  {name:<{width}}  {value}" for name, value in rows.items()))
        ]
        return "\n".join(lines)

    @property
    def numbers(self) -> dict[str, dict[str, Interval]]:
        """The numbers with intervals of all tables: that of benchmarks, and accuracies of groups of pairs."""
        found = dict(self.benchmarks)
        if self.evaluation is not None:
            of = self.evaluation
            # A benchmark shows its subsets by its own formula.
            groups = {"margin": of.by_margin, "length": of.by_length, "source": [] if found else of.by_source}
            found |= {
                f"Accuracy by {name}": {group.name: group.accuracy for group in every}
                for name, every in groups.items()
                if every
            }
        return found

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain values: an interval is [value, low, high], and a number that is not finite is null."""
        found: dict[str, Any] = plain(
            {
                "title": self.title,
                "verdict": self.verdict(),
                "settings": self.settings,
                "benchmarks": self.benchmarks,
                "pairs": None if self.evaluation is None else asdict(self.evaluation),
                "comparisons": [asdict(found) | {"sentence": found.sentence} for found in self.comparisons],
                "notes": self.notes,
            }
        )
        return found

    def scalars(self) -> dict[str, float]:
        """The numbers for TensorBoard, by tag."""
        found = {
            f"evaluate/{group}/{name}": value.value
            for group, entries in self.numbers.items()
            for name, value in entries.items()
        }
        if self.evaluation is not None:
            of = self.evaluation.calibration
            for name in ("accuracy", "log_loss", "brier", "kl", "temperature"):
                found[f"evaluate/pairs/{name}"] = getattr(of, name).value
            found["evaluate/pairs/ece"] = of.equal_mass.value
            found["evaluate/pairs/ece_if_calibrated"] = of.equal_mass.if_calibrated
        return {name.replace(" ", "_"): value for name, value in found.items() if math.isfinite(value)}

    def html(self) -> str:
        """Render the page."""
        sentences = [found.sentence for found in self.comparisons]
        shown = (self.title, self.evaluation, self.pairs, self.benchmarks, sentences)
        return report.page(*shown, verdict=self.verdict(), notes=self.notes, examples=self.examples)


def write(outcome: Outcome, out: Path) -> dict[str, Path]:
    """Write all files of an outcome into a folder, and return them by what they are; report.json comes last."""
    from torch.utils.tensorboard import SummaryWriter

    text = json.dumps(outcome.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    html = outcome.html()
    out.mkdir(parents=True, exist_ok=True)
    files = {"page": out / "report.html", "items": out / "items.parquet", "numbers": out / "report.json"}
    write_parquet(outcome.items, files["items"])
    if outcome.items_against is not None:
        write_parquet(outcome.items_against, out / "items_against.parquet")
    files["page"].write_text(html, encoding="utf-8")
    for earlier in out.glob("events.out.tfevents.*"):  # of the same command, where that may be repeated
        earlier.unlink()
    with SummaryWriter(str(out)) as writer:
        for name, value in outcome.scalars().items():
            writer.add_scalar(name, value, 0)
    unfinished = out / "report.json.unfinished"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(files["numbers"])
    return files
