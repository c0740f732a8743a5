"""Writes the report of a study: CSV files, report.html, figures, README.md between markers, and TensorBoard."""

import os
import textwrap
from datetime import date
from pathlib import Path

from filelock import FileLock

from lit_pref.errors import UserError
from lit_pref.studies.boards import write_boards
from lit_pref.studies.plan_file import Plan
from lit_pref.studies.rendering import draw_effects, effects_of, height_of, markdown, page, table_csv
from lit_pref.studies.results import read_csv, results_of, to_csv
from lit_pref.studies.study import Study
from lit_pref.studies.table import Table, table_of
from lit_pref.studies.trial import outcomes_of

START, END = "<!-- results: written by `ablate report` -->", "<!-- end of results -->"


def write_report(study: Study, plan: Plan) -> Table:
    """Write all files of a study's report, and return its table.

    Raises:
        UserError: a file cannot be written.
    """
    with FileLock(study.folder / ".report.lock"):  # workers that end together write it one after the other
        return _written(study, plan)


def _written(study: Study, plan: Plan) -> Table:
    outcomes = outcomes_of(study)
    results = results_of(study, plan.cells, outcomes)
    table = table_of(study, results)
    readme = study.folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else _first_readme(study)
    files = {"results.csv": to_csv(study, results), "table.csv": table_csv(table), "report.html": page(table)}
    try:
        for name, content in files.items():
            _write(study.folder / name, content)
        _write(readme, with_results(study, text, table))
        _draw_figures(study.folder, table)
        write_boards(study, table, outcomes)
        _log(study, table)
    except OSError as error:
        raise UserError(
            f"the report in {study.folder} cannot be written ({error}): free space or permissions"
        ) from error
    return table


def with_results(study: Study, readme: str, table: Table | None = None) -> str:
    """Return the text of a study's README.md with the table between its markers.

    Args:
        study: the study.
        readme: the text; markers are added at its end if it has none.
        table: the table; None makes it from results.csv.
    """
    if table is None:
        table = table_of(study, read_csv(study, study.folder / "results.csv"))
    if START not in readme:
        readme = f"{readme.rstrip()}\n\n{START}\n{END}\n"
    head, _, rest = readme.partition(START)
    _, _, tail = rest.partition(END)
    figures = "\n\n![effects](effects.png)" if any(row.seeds for row in table.rows) else ""
    figures += "\n\n![ranks at rungs](rungs.png)" if any(ranks.drawable for ranks in table.rungs) else ""
    return f"{head}{START}\n\n{markdown(table)}{figures}\n\n{END}{tail}"


def _log(study: Study, table: Table) -> None:
    """Add a dated line with the verdict of a complete study to the LOG.md beside its folder, if there is one."""
    log = study.folder.resolve().parent / "LOG.md"
    if table.ended < table.trials or not log.exists():
        return
    result = f"{study.name}.** {study.question} Verdict: {table.verdict}."
    text = log.read_text(encoding="utf-8")
    if result not in " ".join(text.split()):
        line = textwrap.fill(f"- **{date.today()}, {result}", 118, subsequent_indent="  ", break_on_hyphens=False)
        _write(log, f"{text.rstrip()}\n{line}\n")


def _first_readme(study: Study) -> str:
    command = f"python -m lit_pref ablate --config {study.file}"
    head = f"# {study.question}\n\nHypothesis: {study.hypothesis}\n\n```bash\n{command}\n```\n"
    return f"{head}\n## Result\n\n{START}\n{END}\n"


def _draw_figures(folder: Path, table: Table) -> None:
    """Draw effects.png, and rungs.png with a panel for each rung that enough cells have passed."""
    from matplotlib.figure import Figure

    if any(row.seeds for row in table.rows):
        effects = Figure(figsize=(7, height_of(len(effects_of(table)))), layout="constrained")
        draw_effects(effects.subplots(), table)
        effects.savefig(folder / "effects.png", dpi=120, metadata={"Software": None})
    file, rungs = folder / "rungs.png", [ranks for ranks in table.rungs if ranks.drawable]
    if not rungs:
        file.unlink(missing_ok=True)  # of a study whose rungs were others
        return
    side = max(4.2, 1.5 + 0.22 * len(rungs[0].cells))
    figure = Figure(figsize=(side * len(rungs), side), layout="constrained")
    for axes, ranks in zip(figure.subplots(1, len(rungs), squeeze=False)[0], rungs, strict=True):
        ranks.draw(axes)
    figure.savefig(file, dpi=120, metadata={"Software": None})


def _write(file: Path, text: str) -> None:
    """Write a file by one rename, so that a reader never sees half of it."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)
