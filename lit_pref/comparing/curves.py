"""Curves of runs: held-out metrics of the common pairs from records, and training metrics from TensorBoard events."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_pref.comparing.common_pairs import CommonPairs
from lit_pref.comparing.measures import metrics_of
from lit_pref.comparing.run_record import RunRecord

HELD_OUT = {
    "rewards/accuracies": "accuracy",
    "calibration/log_loss": "log-loss, nats",
    "rewards/margins": "z, in units of each run's own reward",
    "logps/chosen": "log π(chosen), nats",
}
TRAINING = {
    "train/loss": "loss of each run's own objective",
    "train/rewards/accuracies": "accuracy",
    "train/gradient_norm": "gradient norm",
    "train/learning_rate": "learning rate",
}
"""The metrics that are drawn, with the words on their axes."""


@dataclass(frozen=True)
class Curve:
    """A metric of one run over its optimizer steps."""

    run: str
    metric: str
    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def held_out_curves(runs: Sequence[RunRecord], common: CommonPairs) -> list[Curve]:
    """Return the means of held-out metrics over the common pairs, at every step that has records of all of them."""
    found = []
    for run in runs:
        points: dict[str, list[tuple[int, float]]] = {}
        for step in sorted(run.files):
            records = run.records_at(step)
            row = {name: k for k, name in enumerate(records["id"])}
            if not row.keys() >= set(common.ids):
                continue
            same = {name: [column[row[pair]] for pair in common.ids] for name, column in records.items()}
            for name, values in metrics_of(same).items():
                if name in HELD_OUT:
                    points.setdefault(name, []).append((step, float(np.nanmean(values))))
        for name, of_run in points.items():
            steps, means = zip(*of_run, strict=True)
            found.append(Curve(run.name, name, HELD_OUT[name], steps, means))
    return found


def training_curves(run: RunRecord) -> list[Curve]:
    """Return training metrics from the event files of a run; none if it has no such files."""
    if not any(run.folder.glob("events.out.tfevents.*")):
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0}).Reload()
    there = set(events.Tags()["scalars"])
    found = []
    for name, label in TRAINING.items():
        if name in there:
            scalars = events.Scalars(name)
            steps, values = tuple(one.step for one in scalars), tuple(float(one.value) for one in scalars)
            found.append(Curve(run.name, name, label, steps, values))
    return found


def pairs_per_step(runs: Sequence[RunRecord]) -> list[int] | None:
    """Return the pairs of an optimizer step of each run if they differ, to draw curves over pairs; else None."""
    sizes = [run.config.get("data", {}).get("global_batch") for run in runs]
    return sizes if None not in sizes and len(set(sizes)) > 1 else None


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a centred moving mean over a tenth of the values, which are noisy, or the values if they are few.

    >>> smoothed([1.0, 2.0, 4.0])
    [1.0, 2.0, 4.0]
    """
    half = len(values) // 20
    return [float(np.mean(values[max(0, k - half) : k + half + 1])) for k in range(len(values))]


def title_of(metric: str) -> str:
    """Return a heading for a metric.

    >>> title_of("train/rewards/accuracies"), title_of("logps/chosen")
    ('training: rewards/accuracies', 'held out: logps/chosen')
    """
    name, times = re.subn(r"^train/", "training: ", metric)
    return name if times else f"held out: {metric}"
