"""A trial: one cell with one seed, the folder of its run, and what became of it."""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_pref.studies.study import Measure, Study

Curve = list[tuple[int, float]]
"""A number over optimizer steps."""
State = Literal["stopped", "finished", "diverged", "failed"]


@dataclass(frozen=True)
class Trial:
    """One cell with one seed.

    Args:
        folder: the folder of the study.
        cell: the name of the cell.
        seed: `seed_everything` of the run.
    """

    folder: Path
    cell: str
    seed: int

    @property
    def name(self) -> str:
        """The name below `runs` and in TensorBoard."""
        return f"{self.cell}/s{self.seed}"

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / self.cell / f"s{self.seed}"

    @property
    def config(self) -> Path:
        """The file with the cell's whole configuration."""
        return config_of(self.folder, self.cell)

    @property
    def log(self) -> Path:
        """The file with what the run printed."""
        return self.folder / "logs" / f"{self.cell}.s{self.seed}.txt"

    @property
    def file(self) -> Path:
        """The file of the outcome."""
        return self.run_dir / "trial.json"

    def overrides(self, stop: int | None) -> dict[str, Any]:
        """The options of the run beside the cell's configuration.

        Args:
            stop: the optimizer step to stop at, under the schedule of the whole run; None is the end.
        """
        options = {"seed_everything": self.seed, "run_dir": str(self.run_dir), "ckpt_path": "last"}
        options |= {"print_summary": False, "trainer.enable_progress_bar": False}
        return options if stop is None else options | {"stop_at_step": stop}

    def command(self, stop: int | None) -> list[str]:
        """The command line that trains this trial, without `python -m lit_pref`."""
        return ["fit", f"--config={self.config}", *(f"--{k}={_word(v)}" for k, v in self.overrides(stop).items())]

    def repeat(self) -> str:
        """The line that repeats this trial in another folder."""
        again = ["fit", f"--config={self.config}", f"--seed_everything={self.seed}", f"--run_dir={self.run_dir}-again"]
        return f"python -m lit_pref {shlex.join(again)}"


class Busy(Exception):
    """Another process trains in the run folder: a worker that was taken for lost, or a run started by hand."""


class Job(NamedTuple):
    """Work for a worker: train a trial up to a step.

    Args:
        cell: the name of the cell; empty for a trial of a search whose values are not drawn yet.
        seed: the seed.
        stop: the optimizer step to stop at; None is the end.
        search: the number of a trial of a search.
    """

    cell: str
    seed: int
    stop: int | None = None
    search: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a trial: its state, its curves, and how it can be repeated.

    Args:
        cell: axis name -> label.
        seed: the trial's seed.
        state: `stopped` at a rung, `finished`, `diverged` (a loss that is not finite: a result), or `failed` as often
            as it may be retried.
        step: the last optimizer step.
        steps: optimizer steps of the whole run.
        seconds: of the run, without attempts that failed.
        digest: of the cell's configuration.
        reason: why it diverged or failed.
        failures: attempts that ended with an error.
        losses: attempts whose worker was lost.
        curves: tag -> (step, value) of every number that validation and callbacks logged.
        repeat: the command that repeats it.
        values: path -> value of the cell.
    """

    cell: dict[str, str]
    seed: int
    state: State
    step: int
    steps: int
    seconds: float
    digest: str
    reason: str = ""
    failures: int = 0
    losses: int = 0
    curves: dict[str, Curve] = field(default_factory=dict)
    repeat: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the cell."""
        return ",".join(f"{axis}={label}" for axis, label in self.cell.items()) or "base"

    def reached(self, stop: int | None) -> bool:
        """Whether nothing is left to train up to a step; None is the end."""
        return self.state != "stopped" or (stop is not None and self.step >= stop)

    def value(self, measure: Measure, stop: int | None = None) -> float | None:
        """A measure of the trial after `stop` steps (None: at its end); None if it has none, or diverged before."""
        if stop is None and self.state != "finished":
            return None
        if measure.metric == "time":
            return self.seconds if stop is None else None
        values = [v for step, v in self.curves.get(measure.tag, []) if stop is None or step <= stop]
        if self.step < (stop or 0) or not values or not math.isfinite(values[-1]):
            return None
        if measure.at == "last":
            return values[-1]
        if not isinstance(measure.at, str):
            there = [v for step, v in self.curves[measure.tag] if 0 < step <= max(1, round(measure.at * self.steps))]
            return there[-1] if there and math.isfinite(there[-1]) else None
        trained = [v for step, v in self.curves[measure.tag] if step > 0 and (stop is None or step <= stop)]
        trained = [v for v in trained if math.isfinite(v)]
        return (max if measure.goal == "max" else min)(trained, default=None)

    def write(self, trial: Trial) -> None:
        """Write the outcome; the file appears by one rename."""
        trial.run_dir.mkdir(parents=True, exist_ok=True)
        unfinished = trial.file.with_name(f".trial.{os.getpid()}.json")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, trial.file)


def config_of(folder: Path, cell: str) -> Path:
    """The file with a cell's whole configuration."""
    return folder / "cells" / f"{cell}.yaml"


def outcomes_of(study: Study) -> dict[tuple[str, int], Outcome]:
    """Read the outcomes of all trials of a study, by cell and seed."""
    found = {}
    for file in sorted((study.folder / "runs").glob("*/s*/trial.json")):
        outcome = read_outcome(file)
        found[outcome.name, outcome.seed] = outcome
    return found


def read_outcome(file: Path) -> Outcome:
    """Read an outcome from its file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["curves"] = {tag: [(int(k), float(v)) for k, v in curve] for tag, curve in content["curves"].items()}
    return Outcome(**content)


def curves_of(run_dir: Path, tags: tuple[str, ...] = ("val/", "test/", "testbed/", "train/")) -> dict[str, Curve]:
    """Read the scalars of a run from its TensorBoard files.

    Numbers that a killed run logged after its last checkpoint are dropped where the resumed run begins.

    Args:
        run_dir: the run folder.
        tags: the beginnings of their names.
    """
    curves: dict[str, dict[int, float]] = {}
    for event in _events(run_dir):
        if event.HasField("session_log") and event.session_log.status == 1:  # START, written with a purge step
            curves = {tag: {k: v for k, v in curve.items() if k < event.step} for tag, curve in curves.items()}
        for value in event.summary.value:
            if value.HasField("simple_value") and value.tag.startswith(tags):
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(curve.items()) for tag, curve in sorted(curves.items()) if curve}


def _events(run_dir: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for file in sorted(run_dir.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        for record in RawEventFileLoader(str(file)).Load():
            yield Event.FromString(record)


def _word(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def labels_text(labels: Mapping[str, str]) -> str:
    """The labels of a cell for a table.

    >>> labels_text({"target": "hard", "beta": "0.1"})
    'hard · beta 0.1'
    """
    words = [label if not _is_number(label) else f"{axis} {label}" for axis, label in labels.items()]
    return " · ".join(words) or "base"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false", "null")
    return True
