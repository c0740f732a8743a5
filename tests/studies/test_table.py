"""The table and the verdict follow from results.csv alone, and are the same in every form."""

import csv
import json
import re
from html import escape
from pathlib import Path
from typing import Any

from studies.computed_trials import ended, plan_by_hand
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from lit_pref.studies.reading import read_study
from lit_pref.studies.rendering import grid, markdown, page, table_csv, terminal
from lit_pref.studies.report import END, START, with_results, write_report
from lit_pref.studies.results import read_csv, results_of, to_csv
from lit_pref.studies.study import Study
from lit_pref.studies.table import Table, table_of
from lit_pref.studies.trial import Outcome, Trial


def outcomes(study: Study, **changes: Any) -> dict[tuple[str, int], Outcome]:
    """All trials as finished, except those given as name=outcome changes."""
    found = {}
    for cell in plan_by_hand(study).cells:
        for seed in study.seeds:
            found[cell.name, seed] = ended(Trial(study.folder, cell.name, seed), cell.labels)
    return found


def made(study: Study, found: dict[tuple[str, int], Outcome]) -> Table:
    return table_of(study, results_of(study, plan_by_hand(study).cells, found))


def test_a_clear_difference_is_shown_and_an_unclear_one_is_not(study: Study):
    table = made(study, outcomes(study))
    assert table.heading.startswith("16 trials (4 cells x 4 seeds); primary: score")
    best = next(row for row in table.rows if row.cell == "target=margin,beta=0.3")
    assert best.shown and best.against is not None and best.against.better == 4
    # The seeds differ by 1 each: unpaired intervals are wide, the paired one is not.
    assert best.means["score"].high - best.means["score"].value > 1.5
    assert best.against.difference.high - best.against.difference.value < 0.2
    assert (
        table.verdict.startswith("shown to be better than the baseline: margin · beta 0.3 (+")
        and "better in 4 of 4 seeds" in table.verdict
    )
    assert table.verdict.endswith("not shown: margin · beta 0.1")
    assert any("Holm's correction over 2 comparisons" in note for note in table.notes)


def test_two_seeds_show_nothing(write_study: Any):
    study = read_study(write_study(seeds=[0, 2]))
    table = made(study, outcomes(study))
    assert table.verdict.startswith("not shown: none of 2 differences is clear after the correction (margin")
    assert not any(row.shown for row in table.rows)
    assert "nothing is called shown on fewer than 3 seeds" in table.notes


def test_a_single_comparison_needs_no_correction(write_study: Any):
    axes = {"model.objective.beta": [0.1, 0.2]}
    study = read_study(write_study(axes=axes, compare={"against": "beta=0.1"}))
    table = made(study, outcomes(study))
    assert table.verdict.startswith("not shown: the difference is not clear (beta 0.2 better in ")
    assert any(note.endswith("of the one paired difference, which needs no correction") for note in table.notes)


def test_missing_diverged_and_failed_trials_are_named_and_do_not_shrink_n_silently(study: Study):
    found = outcomes(study)
    del found["target=hard,beta=0.1", 3]
    for seed, state in ((0, "diverged"), (1, "failed")):
        key = ("target=margin,beta=0.1", seed)
        trial = Trial(study.folder, *key)
        found[key] = ended(trial, found[key].cell, state=state, reason="the loss is not finite", curves={})
    table = made(study, found)
    header, cells = grid(table)
    shown = {row[0]: row[header.index("n")] for row in cells}
    assert shown["margin · beta 0.1"] == "2 (1 diverged, 1 failed)" and shown["hard · beta 0.1"] == "3 (1 missing)"
    notes = " ".join(table.notes)
    assert "diverged (a loss was not finite), a result of the cell: margin · beta 0.1: seed 0" in notes
    assert "missing: hard · beta 0.1: seed 3" in notes and "1 diverged" in table.heading
    assert table.verdict.startswith("preliminary, 15 of 16 trials: ")
    assert "trials diverged in margin · beta 0.1, whose differences are of the other seeds" in table.verdict


def test_a_complete_study_without_a_difference_says_why(study: Study):
    found = outcomes(study)
    for cell, seed in found:
        if "hard" in cell:
            found[cell, seed] = ended(
                Trial(study.folder, cell, seed), found[cell, seed].cell, state="diverged", curves={}
            )
    table = made(study, found)
    assert table.verdict.startswith(
        "not shown: no difference has two seeds: trials of the cell or of its baseline diverged"
    )
    assert any(note.endswith("a result of the cell: hard · beta 0.1; hard · beta 0.3") for note in table.notes)


def test_an_axis_that_changed_no_number_is_found(study: Study):
    found = outcomes(study)
    for beta in ("0.1", "0.3"):
        for seed in study.seeds:
            same = found[f"target=hard,beta={beta}", seed].curves
            key = (f"target=margin,beta={beta}", seed)
            found[key] = ended(Trial(study.folder, *key), found[key].cell, curves=same)
    table = made(study, found)
    assert table.verdict == "nothing was varied: every cell has its baseline's numbers in every seed"


def test_every_form_shows_the_same_cells(study: Study):
    table = made(study, outcomes(study))
    header, cells = grid(table)
    said, written, page_text = terminal(table), markdown(table), page(table)
    for text in (*header, *(cell for row in cells for cell in row)):
        assert text.split()[0] in said and text in written and escape(text) in page_text
    rows = list(csv.DictReader(table_csv(table).splitlines()))
    assert [row["cell"] for row in rows] == [row.cell for row in table.rows]
    best = next(row for row in rows if row["cell"] == "target=margin,beta=0.3")
    of = next(row for row in table.rows if row.shown).against
    assert of is not None and float(best["difference low"]) == of.difference.low
    assert "**" not in written, "nothing is set in bold"
    data = json.loads(re.search(r'id="report">(.*?)</script>', page_text, re.DOTALL)[1])  # type: ignore[index]
    assert data["verdict"] == table.verdict and "data:image/svg+xml" in page_text


def test_the_readme_is_made_again_from_the_csv_and_keeps_what_is_written_by_hand(study: Study):
    found = outcomes(study)
    plan = plan_by_hand(study)
    for (cell, seed), outcome in found.items():
        outcome.write(Trial(study.folder, cell, seed))
    table = write_report(study, plan)
    readme = study.folder / "README.md"
    first = readme.read_text()
    assert table.verdict in first and "![effects](effects.png)" in first and (study.folder / "effects.png").exists()
    log = study.folder.parent / "LOG.md"
    log.write_text("# Log\n")
    by_hand = f"# Mine\n\nWhy I asked.\n\n{START}\nold\n{END}\n\nWhat I learnt.\n"
    readme.write_text(by_hand)
    write_report(study, plan)
    write_report(study, plan)
    assert log.read_text().count(", study.** Does the margin help? Verdict: shown to be better") == 1
    again = readme.read_text()
    assert again.startswith("# Mine\n\nWhy I asked.\n") and again.endswith("What I learnt.\n") and "old" not in again
    assert with_results(study, again) == again, "results.csv alone gives the same text"
    assert read_csv(study, study.folder / "results.csv") == results_of(study, plan.cells, found)


def test_rungs_report_the_rank_correlation_and_the_steps_saved(write_study: Any):
    axes = {"model.objective.beta": [0.1, 0.2, 0.3, 0.4]}
    study = read_study(write_study(axes=axes, compare={"against": "beta=0.1"}, rungs={"strategy": "full", "at": 0.4}))
    notes = made(study, outcomes(study)).notes
    assert any("rung at 0.4 of the run: Spearman correlation of its ranking with the final one" in n for n in notes)
    assert any("keeping 3 of 4 cells would have saved 15% of 160 steps" in note for note in notes)
    one = read_study(write_study(axes=axes, compare=None, rungs={"strategy": "one_rung", "at": 0.4, "keep": 2}))
    found = outcomes(one)
    for cell in ("beta=0.3", "beta=0.4"):
        for seed in one.seeds:
            curve = {"score": [(4, 0.0)]}
            key = (cell, seed)
            found[key] = ended(Trial(one.folder, cell, seed), {"beta": cell[5:]}, state="stopped", step=4, curves=curve)
    table = made(one, found)
    assert any("optimizer steps saved by rungs: 30% of 160" in note for note in table.notes)
    assert any(
        note.startswith("stopped at a rung, because other cells were better there: beta 0.3") for note in table.notes
    )
    assert table.ended == table.trials == 16
    assert (
        to_csv(one, results_of(one, plan_by_hand(one).cells, found)).splitlines()[0].endswith(",score,other,score@0.4")
    )


def test_the_ranks_at_a_rung_are_plotted_against_the_final_ones(write_study: Any):
    axes = {"model.objective.beta": [0.1, 0.2, 0.3, 0.4]}
    study = read_study(write_study(axes=axes, compare=None, seeds=[0], rungs={"strategy": "full", "at": 0.4}))
    values = {"0.1": (1.0, 4.0), "0.2": (3.0, 3.0), "0.3": (3.0, 2.0), "0.4": (4.0, 1.0)}
    for beta, (there, end) in values.items():
        trial = Trial(study.folder, f"beta={beta}", 0)
        curves = {"score": [(4, there), (10, end)], "other": [(10, 0.5)]}
        ended(trial, {"beta": beta}, curves=curves).write(trial)
    table = write_report(study, plan_by_hand(study))
    (ranks,) = table.rungs
    assert ranks.cells == ["beta 0.1", "beta 0.2", "beta 0.3", "beta 0.4"]
    assert (ranks.at_rung, ranks.final) == ([4.0, 2.5, 2.5, 1.0], [1.0, 2.0, 3.0, 4.0])
    assert ranks.title == "rung at 0.4 of the run: Spearman -0.95, 4 cells"
    readme = (study.folder / "README.md").read_text()
    assert "![ranks at rungs](rungs.png)" in readme and (study.folder / "rungs.png").exists()
    assert "Ranks at 0.4 of the run" in page(table)
    found = EventMultiplexer().AddRunsFromDirectory(str(study.folder / "tb"))
    found.Reload()
    assert found.Runs()["."]["images"] == ["study/effects", "study/rung_0.4"]

    for beta in ("0.1", "0.2"):
        Trial(study.folder, f"beta={beta}", 0).file.unlink()
    table = write_report(study, plan_by_hand(study))
    assert not (study.folder / "rungs.png").exists() and "rungs.png" not in (study.folder / "README.md").read_text()
    assert any(note.endswith("to the end; below 3 cells, it is not plotted") for note in table.notes)


def test_the_report_of_nothing_says_so(study: Study):
    table = made(study, {})
    assert table.verdict == "preliminary, 0 of 16 trials: not shown: no difference has two seeds yet"
    assert [row.means for row in table.rows] == [{}] * 4 and "effects.png" not in with_results(study, "", table)
    assert Path(study.folder / "results.csv").exists() is False


def test_a_trial_without_a_finite_number_is_named(study: Study):
    found = outcomes(study)
    key = ("target=hard,beta=0.3", 2)
    found[key] = ended(Trial(study.folder, *key), found[key].cell, curves={"score": [(10, float("nan"))], "other": []})
    table = made(study, found)
    assert "finished, and their primary measure is no finite number: hard · beta 0.3: seed 2" in table.notes
    key = ("target=hard,beta=0.1", 2)
    found[key] = ended(Trial(study.folder, *key), found[key].cell, curves={"score": [(10, 1.0)]})
    header, cells = grid(made(study, found))
    assert cells[0][header.index("other")] == "0.500 ± 0.000 (n=3)"
