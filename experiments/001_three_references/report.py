"""Held-out accuracy of every run with 95 % intervals over prompts, beside the rule that the longer response wins."""

import sys
from pathlib import Path

import torch

from lit_pref.metrics.pair_metrics import accuracy, bootstrap_interval
from lit_pref.metrics.records import read_parquet


def line(name: str, right: torch.Tensor, prompts: list[str]) -> str:
    """One row of the table."""
    low, high = bootstrap_interval(right, prompts, seed=0)
    return f"| {name} | {right.mean():.3f} | {low:.3f} to {high:.3f} |"


def main(runs: str) -> None:
    """Print the table of all runs in a folder."""
    rows = []
    for run in sorted(Path(runs).iterdir()):
        files = sorted((run / "records").glob("val-step=*.parquet"))
        records = read_parquet(files[-1]) if files else {}
        if "z" not in records:
            continue
        prompts = records["prompt"]
        rows.append(line(run.name, accuracy(torch.tensor(records["z"], dtype=torch.float64)), prompts))
        longer = torch.tensor(records["chosen_characters"]) - torch.tensor(records["rejected_characters"])
        baseline = line("the longer response wins", accuracy(longer.double()), prompts)
    print(f"{len(prompts)} held-out pairs of {len(set(prompts))} prompts\n")
    print("\n".join(["| run | accuracy | 95 % over prompts |", "|---|---|---|", *rows, baseline]))


if __name__ == "__main__":
    main(*sys.argv[1:])
