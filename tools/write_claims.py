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
from lit_pref.studies.results import Result, read_csv, rung_name
from lit_pref.studies.statistics import Paired, holm, paired, signed, spearman, t_interval, t_probability
from lit_pref.studies.study import Study
from lit_pref.studies.table import FEWEST, SHOWN

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "experiments" / "claims.yaml"
PAGE = ROOT / "docs" / "claims.md"
AGREEMENT = 0.8
"""The rank correlation from which on two rankings are said to agree."""


@dataclass(frozen=True)
class Claim:
    """A row of the page.

    Args:
        row: its entry in experiments/claims.yaml.
        effect: the difference on the seeds, in the units of the measure; None for claims about rungs.
        text: the effect in words.
        probability: the corrected p-value of the difference; NaN for claims about rungs.
        agrees: whether the effect has the claimed direction; None if its interval does not decide.
    """

    row: Mapping[str, Any]
    effect: Paired | None
    text: str
    probability: float
    agrees: bool | None

    @property
    def verdict(self) -> str:
        """The verdict; of a difference, by the rule of a study's table."""
        unclear = self.effect is not None and not (self.probability < SHOWN and self.effect.seeds >= FEWEST)
        if unclear or self.agrees is None:
            return "not shown"
        if self.row.get("rung") == "best":
            return "holds here" if self.agrees else "does not hold here"
        return "shown" if self.agrees else "**the opposite is shown**"

    @property
    def family(self) -> tuple[str, bool]:
        """Rows with the same family are corrected together: a study's claims, and its controls."""
        return self.row["study"], self.row["source"].startswith("control")


def rows() -> list[dict[str, Any]]:
    """The entries of experiments/claims.yaml."""
    return yaml.safe_load(ROWS.read_text(encoding="utf-8"))


def studies() -> list[str]:
    """The names of the studies, in the order of the page."""
    return list(dict.fromkeys(row["study"] for row in rows()))


def claims() -> list[Claim]:
    """Compute every row of the page from the results of its study."""
    found = [_claim(row) for row in rows()]
    for family in dict.fromkeys(claim.family for claim in found):
        own = [k for k, claim in enumerate(found) if claim.family == family]
        corrected = holm([found[k].probability for k in own])
        for k, p in zip(own, corrected, strict=True):
            found[k] = replace(found[k], probability=p)
    return found


def _claim(row: Mapping[str, Any]) -> Claim:
    study = _study(row["study"])
    results = read_csv(study, study.folder / "results.csv")
    if "rung" in row:
        return _rung_claim(row, study, results)
    note = ""
    if "front" in row:
        effect, note = _over_front(study, results, **row["front"])
        goal, unit = study.primary.goal, study.primary.name
    else:
        name = row.get("measure", study.primary.name)
        goal = next(measure.goal for measure in study.measures if measure.name == name)
        first, second = (_by_seed(results, row[cell], name, row.get("minus")) for cell in ("cell", "against"))
        effect, unit = paired(first, second, goal), name
    assert effect is not None, row
    agrees = (effect.difference.value > 0) == (goal == "max")
    where = f"change of {_label(unit)}" if "minus" in row else _label(unit)
    fewer = f" ({len(study.seeds) - effect.seeds} diverged or missing)" if effect.seeds < len(study.seeds) else ""
    text = f"{signed(effect.difference)} {where}, {effect.better} of {effect.seeds} seeds{fewer}{note}"
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


def _over_front(study: Study, results: Sequence[Result], cells: str, of: str, over: str) -> tuple[Paired, str]:
    """Compare points with a front on each seed: the mean height of the points above it, where both have the same KL.

    The front joins the points of the other cells by straight lines, in the order of their KL. Points outside its range
    of KL have nothing to be compared with, and are counted in the note that is returned.
    """
    primary, heights, inside, points = study.primary, [], 0, 0
    for seed in study.seeds:
        own, front = ([one for one in results if one.seed == seed and _has(one, label)] for label in (cells, of))
        line = sorted((one.values[over], one.values[primary.name]) for one in front)
        x, y = zip(*line, strict=True)
        within = [one for one in own if x[0] <= one.values[over] <= x[-1]]
        points, inside = points + len(own), inside + len(within)
        if within:
            above = [one.values[primary.name] - float(np.interp(one.values[over], x, y)) for one in within]
            heights.append(fmean(above))
    better = sum(h > 0 if primary.goal == "max" else h < 0 for h in heights)
    note = f"; {inside} of {points} points lie in the front's range of KL"
    return Paired(t_interval(heights), better, len(heights), t_probability(heights)), note


def _has(one: Result, label: str) -> bool:
    axis, _, value = label.partition("=")
    return one.labels.get(axis) == value


def _rung_claim(row: Mapping[str, Any], study: Study, results: Sequence[Result]) -> Claim:
    """Compare the ranking of the cells at a rung with the final one: `best` or `ranking`."""
    share, kept = study.rungs.shares[0], study.rungs.keep
    cells = list(dict.fromkeys(one.cell for one in results))
    names = (rung_name(study, share), study.primary.name)
    early, late = (np.array([[*_by_seed(results, cell, name).values()] for cell in cells]) for name in names)
    if row["rung"] == "ranking":
        drawn = np.random.default_rng(0).integers(early.shape[1], size=(2000, early.shape[1]))
        every = [spearman(early[:, k].mean(1).tolist(), late[:, k].mean(1).tolist()) for k in drawn]
        low, high = np.quantile(every, (0.025, 0.975))
        rho = spearman(early.mean(1).tolist(), late.mean(1).tolist())
        agrees = True if low >= AGREEMENT else False if high < AGREEMENT else None
        return Claim(
            row, None, f"Spearman {rho:.2f} [{low:.2f}, {high:.2f}] over {len(cells)} settings", math.nan, agrees
        )
    sign = 1 if study.primary.goal == "max" else -1
    first, last = (sign * values.mean(1) for values in (early, late))
    lost = last.max() - last[np.argsort(-first, kind="stable")[:kept]].max()
    saved = (1 - share) * (1 - kept / len(cells))
    text = f"loses {lost:.3f} {_label(study.primary.name)} and saves {saved:.0%} of the steps"
    return Claim(row, None, text, math.nan, bool(lost == 0))


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
        p = (
            ""
            if math.isnan(claim.probability)
            else f", p {'< 0.001' if claim.probability < 5e-4 else f'{claim.probability:.3f}'}"
        )
        cells = [claim.row["claim"], claim.verdict, claim.text + p, claim.row["source"]]
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

A claim is **shown** if its difference on the seeds is clear at 5 % after Holm's correction over the claims of its
study on this page (controls are corrected among themselves). **Not shown** says that these five seeds do not
decide, and is no refutation. Intervals are not corrected, so an interval without 0 may stand beside "not shown".
What holds in such a small world may not hold for large models, and the other way round: the page tests whether
the effect that a paper derives appears when nothing else interferes.

"""
TAIL = """
Effects are mean paired differences with 95 % t intervals; of a calibration error, negative is better. *Controls*
are not claims of a paper; they say what an effect is due to. The last column is written by hand from the tables of
the studies. The rank correlation has a bootstrap interval over seeds; 0.8 counts as agreement.

## Repeat it

One row, in some minutes: `python -m lit_pref ablate --config experiments/006_sft_or_dpo/study.yaml` (with the
extra `studies` installed). All of it, from nothing: `python tools/run_claims.py`; its 290 trials and 15
testbeds took 79 CPU minutes, 63 minutes of two workers on two cores with other work beside them.
"""


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/claims.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
