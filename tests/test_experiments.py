"""The tables of experiments are those that their results give."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from lit_pref.studies.cells import cells_of
from lit_pref.studies.plan import resolved_base
from lit_pref.studies.plan_refusals import refuse_free, refuse_missing
from lit_pref.studies.reading import read_study
from lit_pref.studies.rendering import table_csv
from lit_pref.studies.report import with_results
from lit_pref.studies.results import Result, read_csv
from lit_pref.studies.study import Measure, Rungs
from lit_pref.studies.table import table_of

sys.path.append(str(ROOT / "tools"))
import run_claims
import write_claims

STUDIES = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/study.yaml"))


def test_the_tables_of_reward_models_are_remade_from_their_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = ROOT / "experiments" / "004_reward_models"
    report = runpy.run_path(str(folder / "report.py"))
    report["main"](str(folder / "results.csv"), str(tmp_path / "plot.png"))
    tables = capsys.readouterr().out.strip()
    assert tables.count("| MMPO - Bradley-Terry |") == 5
    assert tables in (folder / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_of_a_study_is_remade_from_its_results(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    study = read_study(Path("experiments") / name / "study.yaml")
    base = resolved_base(study)
    refuse_missing(study, base)
    for axis in study.axes:
        refuse_free(study, axis)
    results = read_csv(study, study.folder / "results.csv")
    assert [(one.cell, one.seed) for one in results] == [
        (cell.name, seed) for cell in cells_of(study) for seed in study.seeds
    ]
    table = table_of(study, results)
    assert table.ended == table.trials
    readme = (study.folder / "README.md").read_text(encoding="utf-8")
    assert with_results(study, readme) == readme
    assert table_csv(table) == (study.folder / "table.csv").read_text(encoding="utf-8")
    assert study.question in readme and study.hypothesis in readme


def verdict_by_text(claim: write_claims.Claim) -> str:
    """The verdict on a claim about a rung, by the numbers that the page prints."""
    if claim.row["rung"] == "best":
        return "holds here" if claim.text.startswith("loses 0.000 ") else "does not hold here"
    low, high = map(float, re.findall(r"-?[0-9.]+(?=[,\]])", claim.text))
    if low < write_claims.AGREEMENT <= high:
        return "not shown"
    return "shown" if low >= write_claims.AGREEMENT else "**the opposite is shown**"


def test_every_verdict_about_a_claim_follows_from_its_numbers():
    for claim in write_claims.claims():
        if claim.effect is None:
            assert claim.verdict == verdict_by_text(claim), claim.row["claim"]
            continue
        interval, share = claim.effect.difference, claim.effect.better / claim.effect.seeds
        clear = claim.probability < 0.05
        assert (claim.verdict == "not shown") != clear, claim.row["claim"]
        if clear:
            assert not interval.low <= 0 <= interval.high, claim.row["claim"]
            assert (share > 0.5) == (claim.verdict == "shown"), claim.row["claim"]
        assert f"{claim.effect.better} of {claim.effect.seeds} seeds" in claim.text


def point(method: str, seed: int, **values: float) -> Result:
    return Result(method, {"method": method}, seed, "finished", values=values)


def made_study(goal: str, **changes: Any) -> Any:
    """A study of two methods, with what the page reads of it."""
    primary = Measure("val/ece@p_true", goal=goal)  # type: ignore[arg-type]
    return SimpleNamespace(primary=primary, measures=(primary,), folder=Path(), **{"seeds": (0, 1, 2), **changes})


@pytest.mark.parametrize(("goal", "agrees"), [("max", False), ("min", True)])
def test_the_direction_of_a_claim_follows_the_goal_and_missing_seeds_are_named(
    goal: str, agrees: bool, monkeypatch: pytest.MonkeyPatch
):
    values = {"new": [0.1, 0.2], "old": [0.3, 0.35, 0.4]}
    results = [point(m, k, **{"val/ece@p_true": v}) for m, of in values.items() for k, v in enumerate(of)]
    monkeypatch.setattr(write_claims, "_study", lambda name: made_study(goal))
    monkeypatch.setattr(write_claims, "read_csv", lambda study, file: results)
    claim = write_claims._claim({"study": "s", "cell": "new", "against": "old", "source": "x"})
    assert claim.agrees is agrees and claim.effect is not None
    assert claim.effect.difference.value == pytest.approx((-0.2 - 0.15) / 2)
    assert claim.text.endswith(f"{2 if agrees else 0} of 2 seeds (1 diverged or missing)")


def test_a_front_is_compared_at_the_same_kl_on_each_seed():
    study = made_study("max", seeds=(0, 1))
    name = study.primary.name
    front = [point("dpo", seed, kl=kl, **{name: 2 * kl + seed}) for seed in (0, 1) for kl in (1.0, 2.0, 3.0)]
    own = [(0, 1.5, 3.5), (0, 9.0, 0.0), (1, 2.5, 6.25)]
    points = [point("new", seed, kl=kl, **{name: gold}) for seed, kl, gold in own]
    found, note = write_claims._over_front(study, front + points, "method=new", "method=dpo", "kl")
    # Seed 0: 3.5 - 3.0, the point outside the front is left out; seed 1: 6.25 - 6.0.
    assert found.difference.value == pytest.approx((0.5 + 0.25) / 2) and (found.better, found.seeds) == (2, 2)
    assert note == "; 2 of 3 points lie in the front's range of KL"


@pytest.mark.parametrize(("late", "best", "ranking"), [([1, 2, 3, 4], True, True), ([4, 3, 2, 1], False, False)])
def test_claims_about_a_rung_compare_its_ranking_with_the_final_one(late: list[int], best: bool, ranking: bool):
    study = made_study("max", rungs=Rungs(at=0.25, keep=2))
    name = study.primary.name
    values = [(f"{name}@0.25", [1.0, 2.0, 3.0, 4.0]), (name, late)]
    results = [
        Result(f"c{k}", {}, seed, "finished", values={tag: of[k] + 0.01 * seed for tag, of in values})
        for k in range(4)
        for seed in range(3)
    ]
    claims = [write_claims._rung_claim({"rung": which}, study, results) for which in ("best", "ranking")]
    assert [claim.agrees for claim in claims] == [best, ranking]
    assert claims[0].verdict == verdict_by_text(claims[0]) == ("holds here" if best else "does not hold here")
    assert claims[1].verdict == verdict_by_text(claims[1]) == ("shown" if ranking else "**the opposite is shown**")
    assert f"loses {0 if best else 2}.000 calibration error and saves 38%" in claims[0].text


def test_the_claims_are_remade_by_the_studies_that_they_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert set(write_claims.studies()) <= set(STUDIES)
    asked: list[list[str]] = []

    class Worker:
        def __init__(self, command: list[str], **_: object) -> None:
            asked.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(run_claims.subprocess, "Popen", Worker)
    monkeypatch.setattr(run_claims, "PAGE", tmp_path / "claims.md")
    monkeypatch.setattr(run_claims, "ROOT", tmp_path)
    run_claims.main(workers=2, only=None)
    named = [command[-1] for command in asked]
    assert named == [f"experiments/{name}/study.yaml" for name in write_claims.studies() for _ in range(2)]
    assert (tmp_path / "claims.md").read_text() == (ROOT / "docs" / "claims.md").read_text()
    with pytest.raises(SystemExit, match="no claim names the study 099"):
        run_claims.main(workers=1, only="099")
    monkeypatch.setattr(Worker, "wait", lambda self: -9)
    with pytest.raises(SystemExit, match="006_sft_or_dpo: a worker ended with exit code -9"):
        run_claims.main(workers=2, only=None)
