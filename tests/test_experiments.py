"""The tables of experiments are those that their results give."""

import runpy
from pathlib import Path

import pytest
from conftest import ROOT


def test_the_tables_of_reward_models_are_remade_from_their_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = ROOT / "experiments" / "004_reward_models"
    report = runpy.run_path(str(folder / "report.py"))
    report["main"](str(folder / "results.csv"), str(tmp_path / "plot.png"))
    tables = capsys.readouterr().out.strip()
    assert tables.count("| MMPO - Bradley-Terry |") == 5
    assert tables in (folder / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
