"""Tables with 95 % intervals over seeds, and a plot, of results.csv: `report.py RESULTS.csv PLOT.png`.

Every objective is trained on the same worlds, so that differences are paired by seed; intervals are Student's t.
"""

import csv
import sys

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STUDENT = {4: 2.776}  # 97.5 % quantile by degrees of freedom
MEASURES = {
    "accuracy": "accuracy against the true order",
    "log_loss": "log-loss, nats",
    "kl": "KL to the true probability, nats",
    "ece": "calibration error",
    "best_of_8": "gold reward of the best of 8",
}
EPOCHS = (1, 3, 10)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and the half width of its interval."""
    return float(values.mean()), float(STUDENT[len(values) - 1] * values.std(ddof=1) / np.sqrt(len(values)))


def main(results: str, plot: str) -> None:
    """Print the tables as Markdown and draw the plot."""
    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    values = {
        (name, epochs, key): np.array(
            [float(row[key]) for row in rows if (row["objective"], int(row["epochs"])) == (name, epochs)]
        )
        for name in objectives
        for epochs in EPOCHS
        for key in MEASURES
    }
    for key, words in MEASURES.items():
        print(f"\n| {words} | " + " | ".join(f"{epochs} epoch{'s'[: epochs > 1]}" for epochs in EPOCHS) + " |")
        print("|---|" + "---|" * len(EPOCHS))
        for name in objectives:
            cells = ["{:.3f} ± {:.3f}".format(*interval(values[name, epochs, key])) for epochs in EPOCHS]
            print(f"| {name} | " + " | ".join(cells) + " |")
        pairs = [values["MMPO", epochs, key] - values["Bradley-Terry", epochs, key] for epochs in EPOCHS]
        cells = ["{:+.3f} ± {:.3f}".format(*interval(difference)) for difference in pairs]
        print("| MMPO - Bradley-Terry | " + " | ".join(cells) + " |")
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), constrained_layout=True)
    for axis, key in zip(axes, ("accuracy", "kl", "ece", "best_of_8"), strict=True):
        for shift, name in enumerate(objectives):
            means, widths = zip(*(interval(values[name, epochs, key]) for epochs in EPOCHS), strict=True)
            axis.errorbar(np.array(EPOCHS) * 1.05 ** (shift - 1), means, widths, marker="o", capsize=3, label=name)
        axis.set(xscale="log", xticks=EPOCHS, xticklabels=EPOCHS, xlabel="epochs", title=MEASURES[key])
        axis.minorticks_off()
    axes[0].legend()
    figure.savefig(plot, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
