"""curves.py RUNS PICTURE: the curves of both layouts over each other, and how far they are apart."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUNS = ("dpo", "three_papers")
DRAWN = ("train/loss", "train/rewards/margins", "val/loss")
COMPARED = (*DRAWN, "train/gradient_norm", "train/rewards/accuracies", "val/rewards/accuracies")


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in COMPARED}


def main(runs: Path, picture: Path) -> None:
    figure, axes = plt.subplots(len(RUNS), len(DRAWN), figsize=(15, 7), layout="constrained")
    for row, run in zip(axes, RUNS, strict=True):
        shared, padded = (curves(runs / f"{run}_{layout}") for layout in ("prefix_shared", "padded"))
        for axis, name in zip(row, DRAWN, strict=True):
            axis.plot(*zip(*shared[name], strict=True), linewidth=4, alpha=0.5, label="shared")
            axis.plot(*zip(*padded[name], strict=True), "k--", linewidth=1, label="padded")
            axis.set_title(f"{run}, {name}")
            axis.legend()
        for name in COMPARED:
            apart = max(abs(a - b) for (_, a), (_, b) in zip(shared[name], padded[name], strict=True))
            print(f"{run} {name}: at most {apart:.1e} apart; ends at {shared[name][-1][1]:.4f}")
    figure.savefig(picture, dpi=60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
