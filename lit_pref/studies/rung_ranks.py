"""Ranks of the cells at each rung against their final ranks: what stopping there decides, or would have decided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_pref.pages.html import NEUTRAL
from lit_pref.studies.results import Result, rung_name
from lit_pref.studies.statistics import spearman
from lit_pref.studies.study import Study
from lit_pref.studies.trial import labels_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST_CELLS = 3
"""Fewer cells than this have no rank correlation, and no plot."""


@dataclass(frozen=True)
class RungRanks:
    """The ranks of the cells that were trained to the end, at one rung and at the end; 1 is the best.

    Args:
        share: the rung, as a share of the run.
        cells: the cells in words.
        at_rung: their ranks there; ties share their mean rank.
        final: their ranks at the end.
        of: number of cells, also of those that were stopped.
        correlation: Spearman's; NaN below three cells, or where all are tied.
    """

    share: float
    cells: list[str]
    at_rung: list[float]
    final: list[float]
    of: int
    correlation: float

    @property
    def drawable(self) -> bool:
        """Whether there are enough cells for a plot."""
        return len(self.cells) >= FEWEST_CELLS

    @property
    def title(self) -> str:
        """The rung and its correlation, for a figure."""
        return f"rung at {self.share:g} of the run: Spearman {_number(self.correlation)}, {len(self.cells)} cells"

    def draw(self, axes: "Axes") -> None:
        """Draw the final rank of each cell over its rank at the rung; agreement is the dotted line."""
        most = len(self.cells)
        axes.plot([1, most], [1, most], color=NEUTRAL, linewidth=0.8, linestyle=":")
        axes.plot(self.at_rung, self.final, "o", color=NEUTRAL, markersize=5)
        for name, x, y in zip(self.cells, self.at_rung, self.final, strict=True):
            right = x <= (most + 1) / 2  # the text lies on the side with more room
            offset, side = ((7, 0), "left") if right else ((-7, 0), "right")
            axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", ha=side, va="center", fontsize=7)
        ticks = range(1, most + 1, max(1, most // 10))
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.set(xlim=(0.5, most + 0.5), ylim=(0.5, most + 0.5), title=self.title)
        axes.title.set_fontsize(9)
        axes.set(xlabel=f"rank at {self.share:g} of the run (1 is the best)", ylabel="final rank")


def rung_ranks(study: Study, results: Sequence[Result]) -> list[RungRanks]:
    """Return the ranks at every rung of a study, by the means of the primary measure over seeds."""
    cells = {one.cell: labels_text(one.labels) for one in results}
    found = []
    for share in study.rungs.shares:
        known = {
            text: (a, b)
            for cell, text in cells.items()
            if (a := _mean(results, cell, rung_name(study, share))) is not None
            and (b := _mean(results, cell, study.primary.name)) is not None
        }
        there, end = [first for first, _ in known.values()], [last for _, last in known.values()]
        ranks = (_ranks(there, study.primary.goal), _ranks(end, study.primary.goal))
        found.append(RungRanks(share, list(known), *ranks, len(cells), spearman(there, end)))
    return found


def rung_notes(study: Study, results: Sequence[Result], ranks: Sequence[RungRanks]) -> list[str]:
    """Return sentences on how well the ranking at each rung agrees with the final one, and on the steps saved."""
    notes = []
    for one in ranks:
        known = _number(one.correlation)
        notes.append(
            f"rung at {one.share:g} of the run: Spearman correlation of its ranking with the final one {known}, over "
            f"the {len(one.cells)} of {one.of} cells that were trained to the end"
            + ("" if one.drawable else f"; below {FEWEST_CELLS} cells, it is not plotted")
        )
    total = sum(one.steps for one in results)
    if ranks and total:
        saved = 1 - sum(one.step for one in results) / total
        notes.append(f"optimizer steps saved by rungs: {saved:.0%} of {total}")
        if study.rungs.strategy == "full":
            cells, share = ranks[0].of, ranks[0].share
            kept = min(study.rungs.keep, cells)
            would = (1 - share) * (1 - kept / cells)
            notes[-1] = (
                f"stopping there and keeping {kept} of {cells} cells would have saved {would:.0%} of {total} steps"
            )
    return notes


def _ranks(values: Sequence[float], goal: str) -> list[float]:
    """Return the ranks of values, the best first; ties share their mean rank.

    >>> _ranks([3.0, 1.0, 3.0], "max"), _ranks([3.0, 1.0, 2.0], "min")
    ([1.5, 3.0, 1.5], [3.0, 1.0, 2.0])
    """
    signed = [-value if goal == "max" else value for value in values]
    return [sum(other < one for other in signed) + (signed.count(one) + 1) / 2 for one in signed]


def _mean(results: Sequence[Result], cell: str, name: str) -> float | None:
    values = [one.values[name] for one in results if one.cell == cell and name in one.values]
    return sum(values) / len(values) if values else None


def _number(correlation: float) -> str:
    return "unknown (below three cells, or ties)" if math.isnan(correlation) else f"{correlation:.2f}"
