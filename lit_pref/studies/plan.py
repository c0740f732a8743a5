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
from lit_pref.printing import say
from lit_pref.run.config import as_arguments, module_of, resolve, run_parser
from lit_pref.run.run import Run, assemble, build
from lit_pref.studies.cells import Cell, cells_of
from lit_pref.studies.measures import refuse_unknown_measures
from lit_pref.studies.plan_file import Plan, Planned, read_plan
from lit_pref.studies.plan_refusals import (
    refuse_early_rungs,
    refuse_equal,
    refuse_fixed_seeds,
    refuse_free,
    refuse_missing,
    refuse_other_trials,
)
from lit_pref.studies.search import cell_of
from lit_pref.studies.study import Study
from lit_pref.studies.training import ONE_PROCESS, make_shared
from lit_pref.studies.trial import config_of, outcomes_of

ONE_CPU = {**ONE_PROCESS, "trainer.accelerator": "cpu"}
TRIED_STEPS = 4


def plan_of(study: Study, share: bool, elsewhere: bool = False) -> Plan:
    """Return the plan of a study; one of the workers that start together makes it.

    Args:
        study: the study.
        share: also make the data and reference scores of all cells.
        elsewhere: trials run on other machines: cells are built on one CPU of this one, and time is not estimated.

    Raises:
        UserError: a cell cannot be run, or the study would show nothing.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with _locked(study.folder / ".plan.lock"):
        plan = read_plan(study)
        if plan is None:
            plan = Planning(study, elsewhere).plan()
            plan.write(study)
        if share and not plan.shared:
            make_shared(study, plan.cells)
            plan = replace(plan, shared=True)
            plan.write(study)
    refuse_other_trials(study, plan)
    return plan


class Planning:
    """Builds and checks the cells of a study.

    Args:
        study: the study.
        elsewhere: whether its trials run on other machines.
    """

    def __init__(self, study: Study, elsewhere: bool = False) -> None:
        self.study, self.elsewhere = study, elsewhere
        self.base = resolved_base(study)

    def plan(self) -> Plan:
        """Return the plan."""
        study = self.study
        cells = [Cell({}, {})] if study.search is not None else cells_of(study)
        for axis in study.axes:
            refuse_free(study, axis)
        refuse_missing(study, self.base)
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
            given = {"run_dir": str(study.folder / "runs" / cell.name)}
            config = resolve(arguments := as_arguments(cell.config(self.base), given))
            text = dumped(config)  # before a testbed fills in its folder, which is another one on another machine
            if self.elsewhere:
                config = resolve(arguments := as_arguments(cell.config(self.base), given | ONE_CPU))
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
        if outcomes_of(self.study) or cell.processes > 1 or self.elsewhere:
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
