"""Goals are read out of results as they are named, and the page is written from the results alone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "tools"))
import bench_gpu
from bench_cells import CELLS, CONTENDERS
from bench_goals import GOALS, Goal, loss_difference, measured, ratio
from write_performance import page, write


def results() -> dict[str, Any]:
    """Every cell as if measured: each contender takes twice the time and memory of the one before it."""
    cells: dict[str, Any] = {}
    for cell in CELLS.values():
        taken: dict[str, Any] = {}
        for k, name in enumerate(cell.contenders):
            taken[name] = {"cpu_s": [2.0**k] * 2, "memory_mib": [2.0**k], "process_mib": 2.0**k}
            taken[name]["losses"] = [0.7, 0.5 + k / 1000]
        cells[cell.name] = {"work": {"pairs": 4}, "tokens": {"padded": 3, "separate": 2}, "contenders": taken}
        cells[cell.name] |= {"date": "2026-01-01", "load": 0.1}
    cells["loop"]["numbers"] = {"lit_pref_ms": 1.0, "bare_ms": 0.4, "metrics_ms": 0.05}
    cells["start"]["numbers"] = {"help_s": 0.1, "import_s": 0.01, "fit_s": 5.0, "fit_imports_s": 4.7}
    cells["generate"]["numbers"] = cells["generate-greedy"]["numbers"] = {"lit_pref_s": 2.0, "bare_s": 3.0}
    rewards = {"pairs": 32.0, "lit_pref_s": 2.0, "file_order_s": 5.0, "sorted_s": 4.0}
    cells["reward-score"]["numbers"] = rewards
    versions = {name: "1" for name in ("torch", "transformers", "trl", "lightning", "python", "cpu", "cores")}
    return {"machine": versions, "cells": cells}


def test_every_goal_has_its_cell_and_every_cell_its_contenders():
    assert {goal.cell for goal in GOALS} <= {cell.name for cell in CELLS.values() if not cell.full}
    assert len(measured(results()["cells"])) == len(GOALS)
    assert {name for cell in CELLS.values() for name in cell.contenders} == set(CONTENDERS)


def test_a_ratio_is_the_median_over_steps_on_the_same_pairs():
    taken = {"ours": {"cpu_s": [1.0, 2.0, 10.0]}, "theirs": {"cpu_s": [2.0, 6.0, 10.0]}}
    assert ratio("cell", "theirs", ours="ours")({"cell": {"contenders": taken}}) == 2.0


def test_values_are_those_of_the_synthetic_results():
    values = {goal.name: value for goal, value in measured(results()["cells"])}
    assert values["a-s-32k, time"] == values["a-s-32k, memory"] == 2.0
    assert values["a live reference, of a step"] == 1.0
    assert values["short pairs: auto against padded"] == 0.5
    assert values["a step of the loop, over bare"] == pytest.approx(0.6)
    assert values["fit beyond its imports"] == pytest.approx(0.3)
    assert values["generate, against a bare loop at its best batch"] == 1.5
    assert values["rewards, against padded batches"] == 2.5
    assert values["rewards, against padded and sorted batches"] == 2.0


@pytest.mark.parametrize(
    ("value", "at_most", "verdict"),
    [(3.0, False, "target met"), (2.5, False, "floor met"), (1.9, False, "MISSED"), (1.9, True, "floor met")],
)
def test_a_verdict_follows_the_direction_of_a_goal(value: float, at_most: bool, verdict: str):
    floor, target = (2.0, 1.0) if at_most else (2.0, 3.0)
    assert Goal("x", lambda cells: value, "cell", floor, target, at_most=at_most).verdict(value) == verdict
    without_target = Goal("x", lambda cells: value, "cell", floor, at_most=at_most).verdict(value)
    assert without_target == ("MISSED" if verdict == "MISSED" else "met")


def test_the_difference_of_losses_is_the_largest_of_a_step():
    cell = results()["cells"]["a-s-32k"]
    first, second = cell["contenders"]
    assert loss_difference(cell, first) is None
    assert loss_difference(cell, second) == pytest.approx(0.001 / 0.5)


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path):
    some = results()
    del some["cells"]["start"]
    file = tmp_path / "performance.json"
    file.write_text(json.dumps(some))
    write(file)
    text = file.with_suffix(".md").read_text()
    assert "| a-s-32k, time | 2 x | 1.8 | 2.2 | floor met |" in text
    assert "| --help |  | ≤ 0.3 |  | not measured |" in text
    assert file.with_suffix(".png").stat().st_size > 10_000


def test_the_page_of_performance_is_up_to_date():
    docs = ROOT / "docs"
    assert (docs / "performance.md").read_text() == page(json.loads((docs / "performance.json").read_text()))


def test_the_bench_of_a_gpu_refuses_a_machine_without_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench_gpu.py"])
    with pytest.raises(SystemExit, match="on a CUDA device and torch finds none here"):
        bench_gpu.main()
