"""Refusals of a plan: axes and seeds that change nothing, rungs in the warm-up, and trials of another configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_pref.config_files import place_of
from lit_pref.errors import UsageError
from lit_pref.modules.resumption import TABLE, OnResume
from lit_pref.run.first_lines import moved_by_seed
from lit_pref.run.run import Run
from lit_pref.studies.cells import Cell, refuse_unknown
from lit_pref.studies.plan_file import Plan
from lit_pref.studies.study import Axis, Study
from lit_pref.studies.trial import config_of, outcomes_of


def refuse_free(study: Study, axis: Axis) -> None:
    """Refuse an axis over settings that change no weights, unless the study measures time or memory.

    Raises:
        UsageError: see above.
    """
    spent = {"time", "train/peak_memory_gib", "train/pairs_per_second", "train/response_tokens_per_second"}
    measured = spent & {measure.tag for measure in study.measures}
    if set(axis.paths) <= set(TABLE[OnResume.FREE]) and not measured:
        paths = " and ".join(axis.paths)
        raise UsageError(f"{study.file}: axes: {paths} changes nothing that a trial trains: leave it out")
    if "seed_everything" in axis.paths:
        raise UsageError(
            f"{study.file}: axes: seed_everything: name the seeds under `seeds`, by which trials are paired"
        )


def refuse_missing(study: Study, base: Mapping[str, Any]) -> None:
    """Refuse an axis over a setting that the base run does not have.

    Raises:
        UsageError: there is one.
    """
    paths = [path for axis in study.axes for path in axis.paths]
    for path in paths:
        if any(path.startswith(f"{other}.") for other in paths):
            continue  # a value of that axis may have it
        try:
            refuse_unknown(base, path)
        except UsageError as error:
            raise UsageError(f"{place_of('axes', path, [str(study.file)], [])}{error}") from error


def refuse_equal(study: Study, cells: Sequence[Cell], texts: Sequence[str]) -> None:
    """Refuse two cells with the same configuration.

    Raises:
        UsageError: there are two.
    """
    seen: dict[str, Cell] = {}
    for cell, text in zip(cells, texts, strict=True):
        if (same := seen.setdefault(text, cell)) is not cell:
            axis = next(name for name, label in cell.labels.items() if same.labels[name] != label)
            raise UsageError(
                f"{study.file}: axes: {axis}: {same.labels[axis]} and {cell.labels[axis]} give the same configuration: "
                "the axis changes nothing; leave one of them out"
            )


def refuse_fixed_seeds(study: Study, cell: Cell, run: Run) -> None:
    """Refuse seeds that decide nothing in a cell.

    Raises:
        UsageError: no draw of the run follows `seed_everything`.
    """
    policy = run.config["model"]["policy"]["seed"]
    own = {
        "the order of pairs": run.config["data"]["seed"],
        "random weights": policy,
        "the adapters' first weights": policy,
    }
    # A seed of its own may equal the run's by chance, so that the draw seems to follow it.
    moved = [draw for draw in moved_by_seed(run.module, run.data) if own.get(draw) is None]
    if len(study.seeds) > 1 and not moved:
        raise UsageError(
            f"{study.file}: seeds: they change nothing in the cell {cell.name}, whose draws all have seeds of their "
            "own (data.seed, model.policy.seed): set these to null, so that they follow seed_everything"
        )


def refuse_early_rungs(study: Study, cell: str, module: Any) -> None:
    """Refuse a rung inside the warm-up, where a ranking says nothing of the method.

    Raises:
        UsageError: there is one.
    """
    total, schedule = module.total_steps, module.schedule
    for share in study.rungs.shares:
        step = max(1, round(share * total))
        if schedule is not None and step < total and schedule.factor(step, total) < 1 and _warms(schedule, step, total):
            raise UsageError(
                f"{study.file}: rungs: step {step} of {total} ({share:g} of the run) lies in the warm-up of {cell} "
                f"({schedule!r}), where nothing can be ranked: stop later, or shorten the warm-up"
            )


def _warms(schedule: Any, step: int, total: int) -> bool:
    return schedule.factor(step, total) > schedule.factor(step - 1, total)


def refuse_other_trials(study: Study, plan: Plan) -> None:
    """Refuse trials in the study's folder that were trained with another configuration.

    Raises:
        UsageError: there are some.
    """
    if study.search is not None:
        return
    digests = {cell.name: cell.digest for cell in plan.cells}
    for (name, seed), outcome in outcomes_of(study).items():
        if name in digests and outcome.digest != digests[name]:
            folder = study.folder / "runs" / name / f"s{seed}"
            raise UsageError(
                f"{folder} was trained with another configuration than {config_of(study.folder, name)} has now: delete "
                f"{folder.parent}, or give the cell another name"
            )
