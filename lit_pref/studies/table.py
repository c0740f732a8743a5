"""The table of a study, a row a cell, made from the rows of its trials; and the verdict in one sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lit_pref.judging.comparison import Interval
from lit_pref.studies.cells import baseline_of
from lit_pref.studies.results import MISSING, WAITING, Result
from lit_pref.studies.rung_ranks import RungRanks, rung_notes, rung_ranks
from lit_pref.studies.statistics import Paired, holm, paired, signed, t_interval
from lit_pref.studies.study import Study
from lit_pref.studies.trial import labels_text

UNMEASURED = "unmeasured"
SHOWN, FEWEST = 0.05, 3
"""A difference is called shown if its corrected p-value is below the first, on at least so many seeds."""


@dataclass(frozen=True)
class Row:
    """A cell in the table.

    Args:
        cell: the name of the cell.
        labels: axis name -> label.
        seeds: seed -> primary measure, of the trials that have it.
        means: measure -> its mean over the trials that have it, with the 95 % t interval; left out where none has.
        counts: measure -> the number of trials that have it.
        seconds: mean over the trials that ended.
        baseline: the name of the cell it is compared with.
        against: the paired difference.
        probability: its corrected p-value.
        states: state -> seeds, for trials that have not finished.
    """

    cell: str
    labels: dict[str, str]
    seeds: dict[int, float]
    means: dict[str, Interval]
    counts: dict[str, int]
    seconds: float
    baseline: str | None = None
    against: Paired | None = None
    probability: float = math.nan
    states: dict[str, list[int]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The cell in words."""
        return labels_text(self.labels)

    @property
    def shown(self) -> bool:
        """Whether the difference is clear after the correction."""
        return self.probability < SHOWN and self.against is not None and self.against.seeds >= FEWEST


@dataclass(frozen=True)
class Table:
    """The table of a study.

    Args:
        study: the study.
        rows: the cells.
        trials: number of planned trials.
        ended: number of those that have finished, diverged or failed, or were stopped for good.
        notes: sentences below the table.
        verdict: the result in one sentence.
        rungs: the ranks of the cells at each rung, and at the end.
    """

    study: Study
    rows: list[Row]
    trials: int
    ended: int
    notes: list[str]
    verdict: str
    rungs: list[RungRanks] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """Trials and measure in one line."""
        seeds, primary = len({seed for row in self.rows for seed in (*row.seeds, *_flat(row))}), self.study.primary
        done = f"{self.trials}" if self.ended == self.trials else f"{self.ended} of {self.trials}"
        diverged = sum(len(row.states.get("diverged", [])) for row in self.rows)
        words = f"{done} trials ({len(self.rows)} cells x {seeds} seeds)" + (
            f", {diverged} diverged" if diverged else ""
        )
        return f"{words}; primary: {primary.metric}, {primary.at}, {primary.goal}; paired on the seed"


def table_of(study: Study, results: Sequence[Result]) -> Table:
    """Return the table of a study from the rows of its trials."""
    counted = [one for one in results if study.search is None or one.seed != study.seeds[0]]
    names = list(dict.fromkeys(one.cell for one in counted))
    rows = [_row(study, [one for one in counted if one.cell == name]) for name in names]
    rows = _compared(study, rows)
    ended = sum(one.state not in (MISSING, WAITING) for one in counted)
    ranks = rung_ranks(study, counted)
    notes = [*_missing(rows), *_of_numbers(study, rows), *rung_notes(study, counted, ranks)]
    table = Table(study, rows, len(counted), ended, notes, "", ranks)
    return replace(table, verdict=verdict_of(table))


def _row(study: Study, trials: Sequence[Result]) -> Row:
    primary = study.primary.name
    names = [measure.name for measure in study.measures]
    values = {name: [one.values[name] for one in trials if name in one.values] for name in names}
    values = {name: numbers for name, numbers in values.items() if numbers}
    seconds = [one.seconds for one in trials if one.state == "finished"]
    states: dict[str, list[int]] = {}
    for one in trials:
        state = UNMEASURED if one.state == "finished" and primary not in one.values else one.state
        if state != "finished":
            states.setdefault(state, []).append(one.seed)
    return Row(
        trials[0].cell,
        trials[0].labels,
        {one.seed: one.values[primary] for one in trials if primary in one.values},
        {name: t_interval(numbers) for name, numbers in values.items()},
        {name: len(numbers) for name, numbers in values.items()},
        sum(seconds) / len(seconds) if seconds else math.nan,
        states=states,
    )


def _compared(study: Study, rows: list[Row]) -> list[Row]:
    """The rows with their paired differences from their baselines, and corrected p-values."""
    by_labels = {tuple(sorted(row.labels.items())): row for row in rows}
    found = []
    for row in rows:
        labels = baseline_of(study, row.labels)
        other = None if labels is None else by_labels.get(tuple(sorted(labels.items())))
        against = None if other is None else paired(row.seeds, other.seeds, study.primary.goal)
        found.append(replace(row, baseline=None if other is None else other.cell, against=against))
    raw = [math.nan if row.against is None else row.against.probability for row in found]
    corrected = holm(raw) if study.compare.correction == "holm" else raw
    return [replace(row, probability=p) for row, p in zip(found, corrected, strict=True)]


def verdict_of(table: Table) -> str:
    """The result of a table in one sentence."""
    compared = [row for row in table.rows if row.baseline is not None]
    start = "" if table.ended == table.trials else f"preliminary, {table.ended} of {table.trials} trials: "
    if not compared:
        return start + "the study names no comparison"
    known = [row for row in compared if not math.isnan(row.probability)]
    if not known:
        why = " yet" if start else ": trials of the cell or of its baseline diverged, failed or were stopped at a rung"
        return f"{start}not shown: no difference has two seeds{why}"
    if all(row.against is not None and row.against.identical for row in known):
        return start + "nothing was varied: every cell has its baseline's numbers in every seed"
    better = [row for row in known if row.shown and _is_better(table.study, row)]
    worse = [row for row in known if row.shown and not _is_better(table.study, row)]
    rest = [row for row in known if not row.shown]
    parts = [f"shown to be better than the baseline: {_list(better)}"] if better else []
    parts += [f"shown to be worse than the baseline: {_list(worse)}"] if worse else []
    if rest and parts:
        parts.append("not shown: " + ", ".join(row.text for row in rest))
    elif rest:
        signs = ", ".join(f"{row.text} better in {_of(row)} seeds" for row in rest[:4]) + (", ..." if rest[4:] else "")
        what = "the difference is not clear" if len(rest) == 1 else f"none of {len(rest)} differences is clear"
        after = " after the correction" if table.study.compare.correction == "holm" and len(known) > 1 else ""
        parts.append(f"not shown: {what}{after} ({signs})")
    fewer = [row.text for row in compared if row.states.get("diverged")]
    parts += [f"trials diverged in {', '.join(fewer)}, whose differences are of the other seeds"] if fewer else []
    return start + "; ".join(parts)


def _is_better(study: Study, row: Row) -> bool:
    assert row.against is not None
    return (row.against.difference.value > 0) == (study.primary.goal == "max")


def _list(rows: Sequence[Row]) -> str:
    known = [(row, row.against) for row in rows if row.against is not None]
    return ", ".join(f"{row.text} ({signed(of.difference)}, better in {_of(row)} seeds)" for row, of in known)


def _of(row: Row) -> str:
    return "0 of 0" if row.against is None else f"{row.against.better} of {row.against.seeds}"


def _missing(rows: Sequence[Row]) -> list[str]:
    """Sentences that name every trial without a final number."""
    words = {
        "diverged": "diverged (a loss was not finite), a result of the cell",
        "failed": "failed as often as they may be retried (`ablate retry`)",
        "stopped": "stopped at a rung, because other cells were better there",
        WAITING: "waiting at a rung",
        UNMEASURED: "finished, and their primary measure is no finite number",
        MISSING: "missing",
    }
    notes = []
    for state, meaning in words.items():
        named = [f"{row.text}{_which(row, row.states[state])}" for row in rows if state in row.states]
        notes += [f"{meaning}: {'; '.join(named)}"] if named else []
    return notes


def _which(row: Row, seeds: Sequence[int]) -> str:
    """The seeds of a cell's trials; empty if these are all of them."""
    return "" if len(seeds) > 1 and not row.seeds and len(row.states) == 1 else f": seed {', '.join(map(str, seeds))}"


def _of_numbers(study: Study, rows: Sequence[Row]) -> list[str]:
    """Sentences on how the numbers are to be read."""
    notes = []
    same = [f"{row.text} = {row.baseline}" for row in rows if row.against is not None and row.against.identical]
    if same:
        notes.append(f"identical in every seed, so that nothing was varied there: {'; '.join(same)}")
    known = sum(not math.isnan(row.probability) for row in rows)
    if known:
        how = f"Holm's correction over {known} comparisons" if study.compare.correction == "holm" else "not corrected"
        which = f"paired differences, {how}" if known > 1 else "one paired difference, which needs no correction"
        notes.append(f"intervals are 95 % t intervals over seeds; p is of the {which}")
    if any(row.against is not None and row.against.seeds < FEWEST for row in rows):
        notes.append(f"nothing is called shown on fewer than {FEWEST} seeds")
    if study.primary.at == "best":
        notes.append("`best` is chosen on the held-out pairs or prompts on which it is reported")
    if study.search is not None:
        first, rest = study.seeds[0], len(study.seeds) - 1
        notes.append(
            f"cells were selected on seed {first} among {study.search.trials}; means are over the {rest} other seeds"
        )
    return notes


def _flat(row: Row) -> list[int]:
    return [seed for seeds in row.states.values() for seed in seeds]
