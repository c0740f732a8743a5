"""The settings of a study: question, base configuration, axes, seeds, measures, comparisons and rungs."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_pref.config_files import place_of
from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean

NAMES = {
    "val/accuracy": "val/rewards/accuracies",
    "val/accuracy@reference0": "val/rewards/accuracies@reference0",
    "val/ece": "val/calibration/ece",
    "val/ece@p_true": "val/calibration@p_true/ece",
    "kl": "testbed/kl",
    "peak_memory": "train/peak_memory_gib",
}
"""Short names of measures, with the TensorBoard tags they stand for. `time` is the seconds of a trial, and no tag."""


class Measure(NamedTuple):
    """A number of a trial: its name, where in the curve of a trial it is read, and whether larger is better.

    `at: best` is the best value of a curve in the direction of the goal, chosen on the pairs it is reported on. A
    number is a share of the run: the last value up to there.
    """

    metric: str
    at: Literal["last", "best"] | float = "last"
    goal: Literal["max", "min"] = "max"

    @property
    def name(self) -> str:
        """The name of its column.

        >>> Measure("val/ece").name, Measure("val/ece", "best").name, Measure("val/ece", 0.25).name
        ('val/ece', 'val/ece@best', 'val/ece@0.25')
        """
        if self.at == "last":
            return self.metric
        return f"{self.metric}@{self.at if isinstance(self.at, str) else format(self.at, 'g')}"

    @property
    def tag(self) -> str:
        """The tag in TensorBoard."""
        return NAMES.get(self.metric, self.metric)


class Axis(NamedTuple):
    """A setting that the cells of a study vary, or several that vary together.

    Args:
        name: the shortest end of the path that no other axis has; of several settings, the name in the file.
        path: the setting, with dots, without `init_args`; of several settings, the name.
        values: label -> value; a mapping or list replaces the whole node.
        several: whether each value is a mapping of settings to their values.
    """

    name: str
    path: str
    values: dict[str, Any]
    several: bool = False

    def settings(self, label: str) -> dict[str, Any]:
        """The settings of a value, with what they are set to."""
        return dict(self.values[label]) if self.several else {self.path: self.values[label]}

    @property
    def paths(self) -> list[str]:
        """Every setting that some value sets."""
        return list(dict.fromkeys(path for label in self.values for path in self.settings(label)))


class Range(NamedTuple):
    """A setting that a search varies: from `low` to `high`, or one of `choices`."""

    name: str
    path: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: dict[str, Any] | None = None


@dataclass(frozen=True)
class Search:
    """A search for good cells: `trials` trials with one seed, of which the `best` cells are trained on all seeds."""

    ranges: tuple[Range, ...]
    trials: int = 20
    best: int = 3
    sampler: Literal["tpe", "random"] = "tpe"
    seed: int = 0


@dataclass(frozen=True)
class Compare:
    """Which cells are compared: each with the one that has the labels of `against` and shares all other axes.

    Args:
        against: axis name -> label of the baseline; empty for no comparison. In a search, the base configuration.
        correction: Holm's correction over all comparisons, or none.
    """

    against: dict[str, str] = field(default_factory=dict)
    base: bool = False
    correction: Literal["holm", "none"] = "holm"


@dataclass(frozen=True)
class Rungs:
    """At which shares of the whole run trials are stopped and measured, and how many cells are trained further.

    Args:
        strategy: `full` trains all cells to the end; with `at`, trials are measured there too, which shows what
            stopping there would have decided. `one_rung` trains only the `keep` best cells on; `halving` keeps one
            cell in `eta` at the share `start`, at `eta` times that share, and so on.
    """

    strategy: Literal["full", "one_rung", "halving"] = "full"
    at: float | None = None
    keep: int = 3
    start: float = 0.1
    eta: int = 3

    @property
    def shares(self) -> list[float]:
        """The shares of a run after which cells are ranked, without the end.

        >>> Rungs("halving", start=0.1).shares, Rungs("one_rung", at=0.4).shares, Rungs().shares
        ([0.1, 0.3, 0.9], [0.4], [])
        """
        if self.strategy != "halving":
            return [] if self.at is None else [self.at]
        found, share = [], self.start
        while share < 1 - 1e-9:
            found.append(round(share, 9))
            share *= self.eta
        return found

    def kept(self, cells: int) -> int:
        """Return how many of so many ranked cells are trained further.

        >>> Rungs("halving").kept(9), Rungs("one_rung", at=0.4).kept(9), Rungs(at=0.4).kept(9)
        (3, 3, 9)
        """
        if self.strategy == "full":
            return cells
        return min(cells, self.keep) if self.strategy == "one_rung" else max(1, cells // self.eta)


@dataclass(frozen=True)
class Study:
    """The settings of a study, as its file has them.

    Args:
        file: where it was read.
        question: shown above the table.
        hypothesis: written before the trials, shown above the verdict.
        base: the configuration files of the base run, later ones override earlier ones.
        axes: what the cells vary; empty for a search.
        search: the ranges of a search, instead of axes.
        seeds: values of `seed_everything`, the same in every cell, so that differences are paired.
        skip: cells to leave out, as axis name -> label.
        primary: the measure by which cells are compared and ranked.
        also: further measures.
        compare: which cells are compared.
        rungs: where trials stop early.
        storage: `auto`, a journal file in the study's folder; or the URL of a database.
        retries: how often a failed trial is trained again.
    """

    file: Path
    question: str
    hypothesis: str
    base: tuple[str, ...]
    axes: tuple[Axis, ...]
    search: Search | None
    seeds: tuple[int, ...]
    skip: tuple[dict[str, str], ...]
    primary: Measure
    also: tuple[Measure, ...]
    compare: Compare
    rungs: Rungs
    storage: str
    retries: int

    @property
    def folder(self) -> Path:
        """The folder of trials and results: that of a file `study.yaml`, else one beside the file with its name."""
        return self.file.parent if self.file.stem == "study" else self.file.with_suffix("")

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The primary measure and all others."""
        return (self.primary, *self.also)

    @property
    def key(self) -> str:
        """A hash of everything that decides which runs are trained, contents of the base files included."""
        parts: list[Any] = [asdict_of(axis) for axis in self.axes]
        parts += [None if self.search is None else asdict(self.search), self.seeds, self.skip, asdict(self.rungs)]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
        for file in self.base:
            digest.update(Path(file).read_bytes())
        return digest.hexdigest()[:16]

    def labels(self, text: str, what: str) -> dict[str, str]:
        """Read conditions such as `target=hard and beta=0.1` as axis name -> label.

        Args:
            text: the conditions.
            what: the key of the file, for the message.

        Raises:
            UsageError: an axis or a label does not exist.
        """
        found = {}
        place = place_of(what.partition(":")[0], None, [str(self.file)], []) or f"{self.file}: "
        for condition in text.split(" and "):
            given, sign, label = (part.strip() for part in condition.partition("="))
            axes = {axis.name: axis for axis in self.axes} | {axis.path: axis for axis in self.axes}
            if not sign or given not in axes:
                known = ", ".join(axis.name for axis in self.axes) or "none"
                raise UsageError(
                    f"{place}{what}: {condition.strip()!r} is not AXIS=VALUE of this study; its axes are {known}"
                    f"{did_you_mean(given, axes)}"
                )
            axis = axes[given]
            same = [known for known in axis.values if _number(known) == _number(label)]
            if not same:
                raise UsageError(
                    f"{place}{what}: {axis.name} has no value {label!r}; it has {', '.join(axis.values)}"
                    f"{did_you_mean(label, axis.values)}"
                )
            found[axis.name] = same[0]
        return found


def asdict_of(axis: Axis) -> list[Any]:
    """The path of an axis and its values in their order."""
    return [axis.path, list(axis.values.items())]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
