"""The loops that the bench compares give the same scores and responses, and other ones are refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tools"))
import bench_generate
import bench_reward
from bench_cells import CELLS


def test_rewards_are_scored_by_all_loops(tmp_path: Path):
    numbers = bench_reward.scoring(CELLS["reward-score"].small(), tmp_path)["numbers"]
    assert numbers["largest_difference"] < 1e-5
    assert numbers["pairs"] == 2
    assert min(numbers[name] for name in ("lit_pref_s", "file_order_s", "sorted_s")) > 0


def test_a_loop_with_other_scores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    padded = bench_reward._padded

    def swapped(*loop: Any, **options: Any) -> Callable[[], Any]:
        return lambda: [pair[::-1] for pair in padded(*loop, **options)()]

    monkeypatch.setattr(bench_reward, "_padded", swapped)
    with pytest.raises(SystemExit, match="scores that differ by"):
        bench_reward.scoring(CELLS["reward-score"].small(), tmp_path)


def test_greedy_responses_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cell, written = CELLS["generate-greedy"].small(), bench_generate._written
    for name in ("same", "fewer"):
        (tmp_path / name).mkdir()
    assert cell.measure(cell, tmp_path / "same")["numbers"]["bare_s"] > 0
    monkeypatch.setattr(bench_generate, "_written", lambda out: written(out)[1:])
    with pytest.raises(SystemExit, match="write different texts"):
        cell.measure(cell, tmp_path / "fewer")
