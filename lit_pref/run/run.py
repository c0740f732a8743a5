"""A run as a Python object: `build` assembles Trainer, module and data from a configuration, and `Run` uses them.

The command line, tests and notebooks all use it; the package builds a Trainer nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger

from lit_pref.callbacks.checkpointing import checkpoint_folder, complete_checkpoints, step_in, trying_out
from lit_pref.callbacks.run_folder import config_file
from lit_pref.callbacks.termination import ending_on_sigterm
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.prepared.splits import sources_of
from lit_pref.errors import UsageError, UserError
from lit_pref.models.saving import refuse_foreign
from lit_pref.modules.base import PairModule
from lit_pref.modules.distributed import check_devices
from lit_pref.modules.resumption import nothing_left
from lit_pref.modules.sharding import refuse_settings
from lit_pref.printing import say
from lit_pref.run.config import as_arguments, fill_in_seed, instantiate, module_of, resolve, run_parser, testbed_of
from lit_pref.run.export import Exported, export
from lit_pref.run.first_lines import first_lines, refuse_other_models
from lit_pref.run.folder_lock import holder_of, locked
from lit_pref.run.folders import check_checkpoint, folder_of_run, newest_checkpoint, refuse_used
from lit_pref.run.lightning_messages import hide_hints, hide_warning_of_used_folder, lightning_errors
from lit_pref.run.saved_config import saved_text
from lit_pref.run.seeding import seed_process
from lit_pref.run.summary import held_out_table, summary
from lit_pref.run.trainer import WorkDone, trainer_of
from lit_pref.run.trainer_call import trainer_call
from lit_pref.testbed.gold_report import gold_report


@dataclass
class Run:
    """A Trainer, a module and its data, with the configuration they were built from.

    Args:
        trainer: the Trainer, with the callbacks of a run; nothing has run yet.
        module: the policy, its references and the objective; no model is loaded yet.
        data: the pairs; nothing is read yet.
        run_dir: the folder to which a training run writes.
        config_text: the resolved configuration as YAML, with every default; the run can be repeated from it alone.
        command: the command that the run was built for.
        options: the parsed options, for everything that is not in the objects above.
        arguments: the options as they were given.
        relaunchable: whether this process's command line can start further processes of this run.
        testbed: the folder of the testbed, if the run uses one.
    """

    trainer: Trainer
    module: PairModule
    data: PreferenceDataModule
    run_dir: Path
    config_text: str
    command: str
    options: Namespace
    arguments: Sequence[str]
    relaunchable: bool = False
    testbed: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain data."""
        return self.module.plain_config

    def fit(self, ckpt_path: str | Path | None = None) -> Exported | None:
        """Train, and export the last checkpoint to `hf` in the run folder.

        Args:
            ckpt_path: the checkpoint to resume; `last` is the newest complete one of the run folder; if there is none
                yet, the run starts from the beginning. None is `ckpt_path` of the configuration.

        Returns:
            The export; None for a `fast_dev_run`, and on all ranks except the first.

        Raises:
            UserError: training with these data, models or settings is impossible, or the folder is in use.
        """
        if self.command != "fit":
            raise UsageError(f"this run was built for {self.command}: build it without `command` to train")
        for name in ("train", "val"):
            if (given := getattr(self.data, name)) is not None:
                sources_of(given, f"data.{name}")  # a mistyped path is refused before a folder is made for the run
        with locked(self.run_dir, self.trainer.is_global_zero):
            return self._fit(ckpt_path)

    def _fit(self, ckpt_path: str | Path | None) -> Exported | None:
        checkpoint = self.module.resumption.checkpoint = self._checkpoint(ckpt_path, or_start=True)
        refuse_foreign(self.run_dir / "hf")  # before training, not after it
        if checkpoint is None:
            refuse_used(self.run_dir, begun="last" in (ckpt_path, self.options.ckpt_path))
        else:
            self.trainer.num_sanity_val_steps = 0  # the held-out metrics before training are already recorded
        if self.options.trainer.logger in (None, True) and not trying_out(self.trainer):
            # Logs that a killed run wrote after its last checkpoint are written again. They lie in the run folder
            # itself, because TensorBoard calls a run by the name of the folder of its events.
            first_step = 0 if checkpoint is None else step_in(Path(checkpoint)) + 1
            self.trainer.logger = TensorBoardLogger(
                self.run_dir, name="", version="", default_hp_metric=False, purge_step=first_step
            )
        refuse_other_models(self.module)
        say(first_lines(self.module, self.trainer, self.run_dir))
        self._call(self.trainer.fit, ckpt_path=checkpoint, weights_only=self.options.weights_only)
        if checkpoint is not None and self.trainer.global_step == step_in(Path(checkpoint)):
            say(nothing_left(self.module.resumption))
        return self._finish()

    def _finish(self) -> Exported | None:
        if trying_out(self.trainer) or not self.trainer.is_global_zero:
            return None
        newest = complete_checkpoints(checkpoint_folder(self.trainer, self.run_dir))[-1]
        exported = self._exported(newest, self.run_dir / "hf")
        if self.options.print_summary:
            if self.testbed is not None and self.module.spec.head == "lm":
                say("writing responses before and after training ...")
                say(gold_report(self.testbed, exported.folder) + "\n")
            config = config_file(self.run_dir, self.config_text)
            say(summary(self.module, self.run_dir, config, newest, exported, ["fit", *self.arguments]))
        return exported

    def _exported(self, checkpoint: str | Path, folder: Path, merge: bool = True, pairs: int = 8) -> Exported:
        words = f"ended by SIGTERM before {folder} was complete: nothing of it is left; the weights are in {checkpoint}"
        words += ", which `python -m lit_pref export` writes"
        with ending_on_sigterm(self.trainer, words):
            return export(checkpoint, folder, merge, pairs, self.module.spec.trust_remote_code)

    def validate(self, ckpt_path: str | Path | None = None) -> dict[str, float]:
        """Return metrics of the held-out pairs by name, and write one record per pair to the run folder.

        Args:
            ckpt_path: the checkpoint to evaluate, or `last`; None is `ckpt_path` of the configuration. If that is null,
                the module's current weights are used, or else those of the policy before training.
        """
        return self._evaluate(self.trainer.validate, ckpt_path)

    def test(self, ckpt_path: str | Path | None = None) -> dict[str, float]:
        """Do the same as `validate`, logged as test."""
        return self._evaluate(self.trainer.test, ckpt_path)

    def predict(self, ckpt_path: str | Path | None = None) -> Path:
        """Write one record per held-out pair as Parquet, and return the folder of the records."""
        self._evaluate(self.trainer.predict, ckpt_path, prints_table=False)
        return self.run_dir / "records"

    def _evaluate(self, method: Any, ckpt_path: str | Path | None, prints_table: bool = True) -> dict[str, float]:
        checkpoint = self._checkpoint(ckpt_path)
        if checkpoint is None and self.module.scorer is None:
            say("weights: those of the policy before training (no --ckpt_path)")
        verbose = {"verbose": self.options.get("verbose", False)} if prints_table else {}
        if self.trainer.is_global_zero and (other := holder_of(self.run_dir)) is not None:
            say(f"note        another run{other} trains in {self.run_dir}; the records are written beside its own")
        with ending_on_sigterm(self.trainer, f"ended by SIGTERM before {self.command} was complete; run it again"):
            self._call(method, ckpt_path=checkpoint, weights_only=self.options.weights_only, **verbose)
        if prints_table and self.trainer.is_global_zero:
            fitted = "".join(f"fitted      {line}\n" for line in self.module.fitted)
            say(f"{fitted}{held_out_table({}, self.module.evaluation)}")
        if self.trainer.is_global_zero:
            say(f"one record per pair: {self.run_dir / 'records'}")
        return dict(self.module.evaluation.last)

    def export(
        self, out: str | Path | None = None, ckpt_path: str | Path | None = "last", merge: bool = True, pairs: int = 8
    ) -> Exported:
        """Write a checkpoint of this run as a Hugging Face folder; see `export.export`.

        Args:
            out: the folder; None is `hf` in the run folder.
            ckpt_path: which checkpoint; `last` is the newest.
            merge: merge a LoRA adapter into the weights.
            pairs: the number of pairs whose scores are compared.
        """
        checkpoint = self._checkpoint(ckpt_path or "last")
        assert checkpoint is not None
        return self._exported(checkpoint, Path(out or self.run_dir / "hf"), merge, pairs)

    def check(self, model: bool = False, html: str | Path | None = None, json: str | Path | None = None) -> None:
        """Find faults in data, objective and models before training, and print a report; see the command `check`.

        Args:
            model: build and compare the models too.
            html: the file for a page with figures.
            json: the file for the report as JSON.

        Raises:
            UserError: a finding is serious enough to stop a run.
        """
        # The check builds its own run from the configuration, so this run's Trainer and data are not changed.
        config = resolve([f"--config={self.config_text}", f"--run_dir={self.run_dir}"], "check")
        check_config(config, f"check {self.run_dir}", model, html, json)

    def before_training(
        self,
        work: Callable[[Any], None],
        refused: Callable[[Any, UserError], None] | None = None,
    ) -> None:
        """Prepare the data as `fit` would, and call `work` on every rank before any model exists; nothing is trained.

        Args:
            work: called with the module.
            refused: called with the error that would prevent training; None raises it.
        """

        def work_and_stop(trainer: Trainer, module: LightningModule, stage: str) -> None:
            work(self.module)
            raise WorkDone

        self.trainer.callbacks.append(LambdaCallback(setup=work_and_stop))  # type: ignore[attr-defined]
        try:
            self._call(self.trainer.fit)
        except WorkDone:
            return  # the Trainer has no other way to end a fit before its model is built
        except UserError as error:
            if refused is None:
                raise
            refused(self.module, error)

    def _checkpoint(self, ckpt_path: str | Path | None, or_start: bool = False) -> str | None:
        wanted = self.options.ckpt_path if ckpt_path is None else str(ckpt_path)
        if wanted != "last":
            return check_checkpoint(wanted)
        return newest_checkpoint(checkpoint_folder(self.trainer, self.run_dir), or_start)

    def _call(self, method: Callable[..., Any], **arguments: Any) -> None:
        trainer_call(
            method, self.trainer, self.run_dir, self.relaunchable, self.module, datamodule=self.data, **arguments
        )


def build(
    config: str | Path | Mapping[str, Any] | Sequence[str | Path],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    command: str = "fit",
) -> Run:
    """Resolve and check a configuration, and assemble its run; nothing is read or written yet, except for a testbed.

    Args:
        config: a YAML file, a list of files (later ones override earlier ones), or the content of one as a dictionary.
        overrides: changes to it, as `"data.seed=1"` or `"--data.seed 1"`, or as a dictionary of dotted names.
        command: `fit`, or another command that needs the run: only `fit` has loggers and checkpoints.

    Raises:
        UserError: the configuration cannot be run as written.

    Example: `build("configs/dpo.yaml", {"data.train": "pairs.jsonl", "model.policy.path": "FOLDER"}).fit()`.
    """
    arguments = as_arguments(config, overrides)
    run = assemble(resolve(arguments, command), command, arguments)
    if isinstance(config, Mapping):
        run.arguments = [f"--config={run.run_dir / 'config.yaml'}"]  # options that repeat this run
    return run


@lightning_errors()
def assemble(config: Namespace, command: str, arguments: Sequence[str], relaunchable: bool = False) -> Run:
    """Trainer, module and data of a resolved configuration; see `Run` for the arguments."""
    hide_hints()
    seed = seed_process(config)
    resumes = command in ("validate", "test", "predict") or config.ckpt_path is not None
    run_dir = folder_of_run(config.run_dir, config.get("config") or [], resumes)
    if config.ckpt_path not in (None, "last"):
        check_checkpoint(config.ckpt_path)
    elif relaunchable and command == "fit" and config.ckpt_path is None:
        refuse_used(run_dir)  # refused before a testbed is made
    testbed = testbed_of(config, seed)
    parser = run_parser(command, module_of(config))
    text = saved_text(parser, config)
    for part in (config.model, config.data):  # after the text: it runs again under another seed
        fill_in_seed(part, seed)
    built = instantiate(parser, config, arguments)
    module = built.model
    module.plain_config = yaml.safe_load(text)
    module.seed = seed
    module.stop_at_step = config.stop_at_step
    trainer = trainer_of(built.trainer, command, run_dir, text)
    check_devices(trainer, config.trainer.devices, config.trainer.num_nodes)
    refuse_settings(trainer.strategy, module.spec, trainer.world_size)
    return Run(trainer, module, built.data, run_dir, text, command, config, arguments, relaunchable, testbed)


def check_config(config: Namespace, title: str, model: bool, html: str | Path | None, json: str | Path | None) -> None:
    """Check a resolved configuration and print the report; see `Run.check`."""
    from lit_pref.check.check import Check

    check = Check(title, None if html is None else Path(html).expanduser(), None if json is None else Path(json), model)
    check.loosen(config)
    hide_warning_of_used_folder()
    run = assemble(config, "check", [])
    check.check_devices(run.trainer, run.module)
    run.before_training(check.run, check.refused)
    check.finish()
