"""Writes docs/claims.md: the claims of papers, with verdicts that follow from the results of studies."""

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from lit_pref.studies.reading import read_study
from lit_pref.studies.results import Result, read_csv
from lit_pref.studies.statistics import Paired, decimals, holm, paired, signed, spearman, t_interval, t_probability
from lit_pref.studies.study import Study
from lit_pref.studies.table import FEWEST, SHOWN

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "experiments" / "claims.yaml"
PAGE = ROOT / "docs" / "claims.md"


@dataclass(frozen=True)
class Claim:
    """A row of the page.

    Args:
        row: its entry in experiments/claims.yaml.
        effect: the difference on the seeds, positive where the claim says so; None for a rank correlation.
        text: the effect in words.
        probability: the corrected p-value of the difference.
        agrees: whether the effect has the claimed direction.
    """

    row: Mapping[str, Any]
    effect: Paired | None
    text: str
    probability: float
    agrees: bool

    @property
    def verdict(self) -> str:
        """The verdict, by the same rule as in a study's table."""
        if self.effect is None:
            return "holds here" if self.agrees else "does not hold here"
        if not (self.probability < SHOWN and self.effect.seeds >= FEWEST):
            return "not shown"
        return "shown" if self.agrees else "**the opposite is shown**"


def rows() -> list[dict[str, Any]]:
    """The entries of experiments/claims.yaml."""
    return yaml.safe_load(ROWS.read_text(encoding="utf-8"))


def studies() -> list[str]:
    """The names of the studies, in the order of the page."""
    return list(dict.fromkeys(row["study"] for row in rows()))


def claims() -> list[Claim]:
    """Compute every row of the page from the results of its study."""
    found = [_claim(row) for row in rows()]
    for name in studies():
        own = [k for k, claim in enumerate(found) if claim.row["study"] == name]
        corrected = holm([found[k].probability for k in own])
        for k, p in zip(own, corrected, strict=True):
            found[k] = replace(found[k], probability=p)
    return found


def _claim(row: Mapping[str, Any]) -> Claim:
    study = _study(row["study"])
    results = read_csv(study, study.folder / "results.csv")
    if "rung" in row:
        return _rank_claim(row, study, results)
    if "front" in row:
        effect, goal, unit = _over_front(study, results, **row["front"]), study.primary.goal, study.primary.name
    else:
        name = row.get("measure", study.primary.name)
        goal = next(measure.goal for measure in study.measures if measure.name == name)
        first, second = (_by_seed(results, row[cell], name, row.get("minus")) for cell in ("cell", "against"))
        effect, unit = paired(first, second, goal), name
    assert effect is not None, row
    agrees = (effect.difference.value > 0) == (goal == "max")
    where = _label(unit) + (" lost or gained" if "minus" in row else "")
    text = f"{signed(effect.difference)} {where}, {effect.better} of {effect.seeds} seeds"
    return Claim(row, effect, text, effect.probability, agrees)


def _study(name: str) -> Study:
    """Read a study, whose base files are named from the repository's root, wherever this runs."""
    with chdir(ROOT):
        study = read_study(Path("experiments") / name / "study.yaml")
    return replace(study, file=ROOT / study.file)


def _by_seed(results: Sequence[Result], cell: str, name: str, minus: str | None = None) -> dict[int, float]:
    found = {one.seed: one.values for one in results if one.cell == cell and name in one.values}
    if not found:
        raise ValueError(f"no trial of the cell {cell} has {name}")
    return {seed: of[name] - (of[minus] if minus else 0.0) for seed, of in found.items()}


def _over_front(study: Study, results: Sequence[Result], cells: str, of: str, over: str) -> Paired:
    """Compare points with a front on each seed: the mean height of the points above it, where both have the same KL.

    The front joins the points of the other cells by straight lines, in the order of their KL.
    """
    primary = study.primary.name
    heights = []
    for seed in study.seeds:
        own, front = ([one for one in results if one.seed == seed and _has(one, label)] for label in (cells, of))
        line = sorted((one.values[over], one.values[primary]) for one in front)
        x, y = zip(*line, strict=True)
        inside = [one for one in own if x[0] <= one.values[over] <= x[-1]]
        if inside:
            heights.append(fmean(one.values[primary] - float(np.interp(one.values[over], x, y)) for one in inside))
    return Paired(t_interval(heights), sum(h > 0 for h in heights), len(heights), t_probability(heights))


def _has(one: Result, label: str) -> bool:
    axis, _, value = label.partition("=")
    return one.labels.get(axis) == value


def _rank_claim(row: Mapping[str, Any], study: Study, results: Sequence[Result]) -> Claim:
    """Compare the ranking of the cells at a rung with the final one, and say what stopping there costs and saves."""
    rung, final, cells = row["rung"], study.primary.name, list(dict.fromkeys(one.cell for one in results))
    early, late = ([fmean(_by_seed(results, cell, name).values()) for cell in cells] for name in (rung, final))
    rho, share = spearman(early, late), float(rung.rpartition("@")[2])
    kept = sorted(range(len(cells)), key=lambda k: -early[k])[:3]
    best = max(range(len(cells)), key=lambda k: late[k])
    lost = late[best] - max(late[k] for k in kept)
    saved = (1 - share) * (1 - 3 / len(cells))
    text = (
        f"Spearman {rho:.2f} over {len(cells)} settings; stopping there and training 3 to the end saves {saved:.0%} of "
        f"the steps, and loses {lost:.{decimals(t_interval(late))}f} of {_label(final)}"
    )
    return Claim(row, None, text, math.nan, rho >= 0.8)


def _label(name: str) -> str:
    """A measure in words."""
    words = {
        "val/ece@p_true": "calibration error",
        "testbed/gold_sampled": "gold reward",
        "testbed/gold_best": "gold reward of the best of 8",
        "val/accuracy": "accuracy",
    }
    return next(text for tag, text in words.items() if name.startswith(tag))


def table(found: Sequence[Claim], columns: int = 5) -> str:
    """The claims as a Markdown table, with the first columns only for README."""
    header = ["claim", "verdict", "effect, 95 % interval", "source", "study", "what to know"]
    lines = [header[:columns], ["---"] * columns]
    for claim in found:
        study = claim.row["study"]
        cells = [claim.row["claim"], claim.verdict, claim.text, claim.row["source"]]
        cells += [f"[{study[:3]}](../experiments/{study}/README.md)", claim.row.get("otherwise", "")]
        lines.append(cells[:columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def headlines() -> str:
    """The first columns of the rows marked as headlines, for README."""
    return table([claim for claim in claims() if claim.row.get("headline")], 3)


def page() -> str:
    """The page's text."""
    return HEAD + table(claims(), 6) + "\n" + TAIL


HEAD = """# What the papers' claims do in a world whose truth is known

Written by `python tools/write_claims.py` from the results of the studies in `experiments/`.

The world is the testbed: a small language in which the true reward of every response is known, an annotator
whose labels are exactly Bradley-Terry, and a policy of 113,000 weights. Each of five seeds has a world of its
own: other prompts, demonstrations, warm start, pairs and noise. Every method sees the same five, so that
differences are paired. *Gold reward* is the true reward, 0 to 10, of responses sampled at temperature 1 to 512
held-out prompts; the warm-started policy has about 6.5. Calibration errors are against the true probability.

A claim is **shown** if its difference on the seeds is clear at 5 % after Holm's correction over the rows of its
study on this page; **not shown** says that these five seeds do not decide, and is no refutation. What holds in
such a small world may not hold for large models, and the other way round: the table tests whether an effect that
a paper explains by its mathematics is there where nothing else is.

"""
TAIL = """
A number in front of the interval is the mean difference in the unit behind it; of a calibration error, less is
better. *Controls* are not claims of a paper; they say what an effect is due to.

## Repeat it

One row, in some minutes: `python -m lit_pref ablate --config experiments/006_sft_or_dpo/study.yaml` (with the
extra `studies` installed). All of it, from nothing: `python tools/run_claims.py`.
"""


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/claims.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
