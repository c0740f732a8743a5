"""Plans a study: resolves, builds and checks every cell before anything is trained, and prepares what cells share."""

import hashlib
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace

from lit_pref.errors import UsageError, UserError
from lit_pref.modules.resumption import TABLE, OnResume
from lit_pref.printing import say
from lit_pref.run.config import as_arguments, module_of, resolve, run_parser
from lit_pref.run.first_lines import moved_by_seed
from lit_pref.run.run import Run, assemble, build
from lit_pref.studies.cells import Cell, cells_of
from lit_pref.studies.measures import refuse_unknown_measures
from lit_pref.studies.plan_file import Plan, Planned, read_plan
from lit_pref.studies.search import cell_of
from lit_pref.studies.study import Axis, Study
from lit_pref.studies.training import ONE_PROCESS, make_shared
from lit_pref.studies.trial import config_of, outcomes_of

TRIED_STEPS = 4


def plan_of(study: Study, share: bool) -> Plan:
    """Return the plan of a study; one of the workers that start together makes it.

    Args:
        study: the study.
        share: also make the data and reference scores of all cells.

    Raises:
        UserError: a cell cannot be run, or the study would show nothing.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with _locked(study.folder / ".plan.lock"):
        plan = read_plan(study)
        if plan is None:
            plan = Planning(study).plan()
            plan.write(study)
        if share and not plan.shared:
            make_shared(study, plan.cells)
            plan = replace(plan, shared=True)
            plan.write(study)
    refuse_other_trials(study, plan)
    return plan


class Planning:
    """Builds and checks the cells of a study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.base = resolved_base(study)

    def plan(self) -> Plan:
        """Return the plan."""
        study = self.study
        cells = [Cell({}, {})] if study.search is not None else cells_of(study)
        for axis in study.axes:
            refuse_free(study, axis)
        for cell in self._ends_of_ranges():
            self._built(cell, write=False)
        built = [self._built(cell, write=True) for cell in cells]
        refuse_equal(study, cells, [text for text, _ in built])
        planned = [self._planned(cell, *one) for cell, one in zip(cells, built, strict=True)]
        return Plan(study.key, planned, *self._tried(planned[0]))

    def _ends_of_ranges(self) -> Iterator[Cell]:
        """Cells of a search that use every end of a range and every choice."""
        if self.study.search is None:
            return
        ranges = self.study.search.ranges
        most = max(2, *(len(one.choices or ()) for one in ranges))
        for k in range(most):
            drawn = {}
            for one in ranges:
                values: Sequence[Any] = [one.low, one.high] if one.choices is None else list(one.choices)
                drawn[one.path] = values[k % len(values)]
            yield cell_of(self.study, drawn)

    def _built(self, cell: Cell, write: bool) -> tuple[str, Run]:
        """Build the run of a cell; return its whole configuration as YAML, which is also written, and the run."""
        study = self.study
        try:
            arguments = as_arguments(cell.config(self.base), {"run_dir": str(study.folder / "runs" / cell.name)})
            config = resolve(arguments)
            text = dumped(config)  # before a testbed fills in its folder, which is another one on another machine
            run = assemble(config, "score", arguments)
        except UserError as error:
            raise UsageError(
                f"{study.file}: the cell {cell.name} cannot be run: {error}. Correct it, or leave it out with `skip`"
            ) from error
        if write:
            file = config_of(study.folder, cell.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return text, run

    def _planned(self, cell: Cell, text: str, run: Run) -> Planned:
        """Prepare the data of a cell, and check what depends on them."""
        processes, digest = run.trainer.world_size, digest_of(text)
        if processes > 1:
            run = build(str(config_of(self.study.folder, cell.name)), {**ONE_PROCESS, "run_dir": "."}, "score")
        refuse_fixed_seeds(self.study, cell, run)
        steps: list[int] = []

        def look(module: Any) -> None:
            steps.append(module.total_steps)
            refuse_unknown_measures(self.study, module)
            refuse_early_rungs(self.study, cell.name, module)

        say(f"checking    {cell.name}")
        run.before_training(look)
        return Planned(cell.name, cell.labels, digest, steps[0], processes, cell.values)

    def _tried(self, cell: Planned) -> tuple[float | None, int | None]:
        """Estimate the seconds and the bytes of a trial by a few steps of the first cell; None where that fails."""
        if outcomes_of(self.study) or cell.processes > 1:
            return None, None
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            options = {"trainer.fast_dev_run": TRIED_STEPS, "trainer.log_every_n_steps": 1, "run_dir": folder}
            options |= {"trainer.enable_progress_bar": False, "print_summary": False, "trainer.callbacks": None}
            run = build(str(config_of(self.study.folder, cell.name)), options)
            try:
                run.fit()
            except UserError:
                return None, None  # the trials will say why
        seconds = time.monotonic() - started
        module: Any = run.module
        # An evaluated pair takes a third of a trained one, which also has a backward pass.
        pairs = cell.steps * run.data.global_batch + len(run.data.val_pairs) * self._passes(run, cell.steps) / 3
        seconds += pairs / module.training_numbers.get("train/pairs_per_second", float("inf"))
        parameters = list(module.scorer.parameters())
        weights = sum(p.numel() * p.element_size() for p in parameters)
        trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        saved = 3 * trained + (weights - trained if module.spec.adapters is None else 0)
        return seconds, int(2 * saved + weights)

    @staticmethod
    def _passes(run: Run, steps: int) -> float:
        """Validation passes of a whole run, with the one before training."""
        return 1 + max(1.0, steps / max(1, run.data.windows_per_epoch))


def resolved_base(study: Study) -> dict[str, Any]:
    """The whole configuration of the base run as plain data.

    Raises:
        UsageError: it cannot be resolved, or sets what a trial sets itself.
    """
    base: dict[str, Any] = yaml.safe_load(dumped(resolve([f"--config={file}" for file in study.base])))
    for name in ("ckpt_path", "stop_at_step"):
        if base.get(name) is not None:
            raise UsageError(f"{', '.join(study.base)}: {name}: a study sets it for each trial; leave it out")
    return base


def dumped(config: Namespace) -> str:
    """A whole configuration as YAML, without the folder of its run."""
    alone = config.clone()
    alone.run_dir = None
    return run_parser("fit", module_of(config)).dump(alone, skip_unset=False)


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


def digest_of(text: str) -> str:
    """A hash of a configuration."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        say("another worker is planning the study and making what its trials share; waiting")
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()
