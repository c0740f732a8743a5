"""`python -m lit_pref fit|validate|test|predict`: LightningCLI with run folders, resumption and plain errors."""

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_pref.callbacks.checkpointing import (
    AtomicCheckpointIO,
    Checkpoints,
    check_complete,
    complete_checkpoints,
    step_in,
    trying_out,
)
from lit_pref.callbacks.in_place_of_training import InPlaceOfTraining
from lit_pref.callbacks.progress import progress
from lit_pref.callbacks.run_folder import RunFolder
from lit_pref.callbacks.sample_texts import SampleTexts  # noqa: F401  its short name resolves once it is imported
from lit_pref.commands.check import asked_for
from lit_pref.commands.export import export
from lit_pref.commands.score import fill, rows_to_verify, verify
from lit_pref.commands.select import out_of, write
from lit_pref.commands.summary import closing_words, held_out_table, opening_words
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.selection import criteria  # noqa: F401  their short names resolve once they are imported
from lit_pref.errors import UsageError, UserError
from lit_pref.modules.distributed import check_devices, refuse_fsdp1
from lit_pref.modules.preference import PreferenceModule
from lit_pref.parser import Parser
from lit_pref.testbed.gold_report import gold_report
from lit_pref.testbed.make import Testbed, make

_OF_THE_CHOICE = ("--data.selection", "--data.train")
"""Options that a run on chosen pairs does not repeat."""


class PreferenceCLI(LightningCLI):
    """The four Trainer commands over `PreferenceModule` and `PreferenceDataModule`."""

    def __init__(
        self,
        args: list[str] | None = None,
        instead: Callable[[PreferenceModule], None] | None = None,
        change: Callable[[Any], None] | None = None,
        refused: Callable[[PreferenceModule, UserError], None] | None = None,
    ) -> None:
        self.instead = instead  # of training, once the data are prepared
        self.change = change  # the configuration, before anything is built
        self.refused = refused  # is told what a run does not begin for
        self.made: Path | None = None  # the testbed's folder, where one was asked for
        super().__init__(
            PreferenceModule,
            PreferenceDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                # One pass over all held-out pairs before training: the baseline of every curve.
                "num_sanity_val_steps": -1,
                "enable_model_summary": False,
                "log_every_n_steps": 10,
            },
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str | None, help="Run folder; null: runs/ and the config file's name.")
        parser.add_argument(
            "--testbed", type=Testbed | None, help="Make this testbed first; it fills in policy and data."
        )
        parser.add_argument("--stop_at_step", type=int | None, help="Stop here, under the full run's schedule.")
        parser.add_argument("--closing_words", type=bool, default=True, help="Say at the end where everything is.")

    def _parse_ckpt_path(self) -> None:
        """Not from the checkpoint: the command line wins over it."""

    # Before anything is built

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if self.change is not None:
            self.change(config)
        if config.testbed is not None:
            self.made = make(Testbed(**vars(config.testbed)))
            self._fill_in(config, self.made)
        going_on = self.subcommand != "fit" or config.get("ckpt_path") is not None
        self.run_dir = Path(config.run_dir or _name_of_run(config.get("config") or [], going_on))
        if config.get("ckpt_path") == "last":
            config.ckpt_path = self._newest()
        elif config.get("ckpt_path") is not None:
            check_complete(Path(config.ckpt_path))
        elif self.subcommand == "fit" and self.instead is None:
            self._refuse_used_folder()

    @staticmethod
    def _fill_in(config: Any, made: Path) -> None:
        policy = config.model.policy
        if policy.path is None and policy.config is None:
            policy.path = str(made / "policy")
        if config.data.train is None:
            config.data.train = str(made / "train.jsonl")
            config.data.val = str(made / "val.jsonl")

    def _newest(self) -> str | None:
        folder = self.run_dir / "checkpoints"
        complete = complete_checkpoints(folder)
        if complete:
            return str(complete[-1])
        if self.subcommand != "fit":
            raise UsageError(f"--ckpt_path last: there is no complete checkpoint in {folder}")
        _say(f"--ckpt_path last: no complete checkpoint in {folder} yet, starting from the beginning")
        return None

    def _make_run_folder(self) -> None:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {self.run_dir} cannot be made: {error.strerror}; give another --run_dir"
            ) from error

    def _refuse_used_folder(self) -> None:
        # Other ranks are started after the first has begun to write.
        first = "LOCAL_RANK" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0"
        if first and (self.run_dir / "config.yaml").exists():
            raise UsageError(
                f"{self.run_dir} already holds a run; go on with it (--ckpt_path last), name another folder "
                f"(--run_dir {self.run_dir}-2), or delete it"
            )

    # Building

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # What the class of an optional argument refuses, jsonargparse tells of every alternative.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__
            # Where one alternative is no class, only its words are left of it.
            told = re.findall(r"^\s*- (?!Expected|Not a valid|a )(.+)$", str(error), flags=re.MULTILINE)
            if cause is None and not told:
                raise
            raise cause or UsageError(told[-1]) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        self._finish_model()
        if config.max_epochs is None and config.max_steps == -1:
            kwargs["max_epochs"] = 1
        kwargs["default_root_dir"] = str(self.run_dir)
        if self.subcommand == "fit" and self.config["fit"].ckpt_path is not None:
            kwargs["num_sanity_val_steps"] = 0  # a run that goes on is not before training
        kwargs["use_distributed_sampler"] = False
        kwargs["plugins"] = [*_as_list(config.plugins), AtomicCheckpointIO()]
        callbacks = _as_list(config.callbacks)
        if self.instead is not None:
            kwargs["logger"] = False
            callbacks.append(InPlaceOfTraining(self.instead))
        elif config.enable_progress_bar is not False:
            callbacks.append(progress())
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
        if self.subcommand == "fit" and self.instead is None:
            callbacks.append(RunFolder(self.config_text))
            if not any(isinstance(callback, Checkpoints) for callback in callbacks):
                callbacks.append(Checkpoints())
            if config.logger in (None, True):
                kwargs["logger"] = TensorBoardLogger(
                    self.run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=self._first_step()
                )
        elif config.logger is None:
            kwargs["logger"] = False
        kwargs["callbacks"] = callbacks
        refuse_fsdp1(config.strategy)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:  # Lightning's words for a combination of settings that cannot be
            raise UsageError(" ".join(str(error).split())) from error
        check_devices(trainer, config.devices, config.num_nodes)
        return trainer

    def _first_step(self) -> int:
        """The step from which this run writes: what a killed run wrote after its last checkpoint is done again."""
        checkpoint = self.config["fit"].ckpt_path
        return 0 if checkpoint is None else step_in(Path(checkpoint)) + 1

    def _finish_model(self) -> None:
        config = self.config[self.subcommand]
        again = config.clone()
        again.run_dir = None
        if "ckpt_path" in again:
            again.ckpt_path = None
        # What is saved runs again on its own, in a folder of its own.
        self.config_text = self._parser(self.subcommand).dump(again, skip_unset=False)
        self.model.plain_config = yaml.safe_load(self.config_text)
        self.model.seed = int(config.seed_everything)
        self.model.stop_at_step = config.stop_at_step

    # Around the Trainer's commands

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except UserError as error:
            if self.refused is not None:
                self.refused(self.model, error)
                return
            # The first process speaks and ends; the ones that it started would wait for it, or fail loudly without it.
            if isinstance(self.trainer.strategy.launcher, _SubprocessScriptLauncher):
                self.trainer.strategy.launcher.kill(signal.SIGKILL)
            raise

    def before_fit(self) -> None:
        if self.instead is not None:
            return
        self._make_run_folder()
        _say(opening_words(self.model, self.trainer, self.run_dir))

    def before_validate(self) -> None:
        if self.config[self.subcommand].ckpt_path is None:
            _say("weights: those of the policy before training (no --ckpt_path)")

    before_test = before_predict = before_validate

    def after_fit(self) -> None:
        if self.instead is not None or trying_out(self.trainer) or not self.trainer.is_global_zero:
            return
        newest = complete_checkpoints(self._checkpoint_folder())[-1]
        exported = export(newest, self.run_dir / "hf")
        if not self.config["fit"].closing_words:
            return
        if self.made is not None:
            _say("writing responses before and after training ...")
            _say(gold_report(self.made, exported.folder) + "\n")
        again = _without(sys.argv[1:], "--run_dir", "--ckpt_path", "--model.objective")
        _say(closing_words(self.model, self.run_dir, newest, exported, again))

    def _checkpoint_folder(self) -> Path:
        return next(c.where(self.trainer) for c in self.trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]

    def after_validate(self) -> None:
        if self.trainer.is_global_zero:
            fitted = "".join(f"fitted      {line}\n" for line in self.model.fitted)
            table = held_out_table({}, self.model.evaluation.last)
            _say(f"{fitted}{table}\none record a pair: {self.run_dir / 'records'}")

    after_test = after_validate

    def after_predict(self) -> None:
        _say(f"one record a pair: {self.run_dir / 'records'}")


def main(arguments: list[str]) -> None:
    """Run a Trainer command, or what `score` and `select` do of one.

    Raises:
        UsageError: Lightning or this project refused the command line or configuration.
    """
    _quiet()
    sys.argv = [sys.argv[0], *arguments]
    try:
        if arguments[0] == "score":
            rows, rest = rows_to_verify(arguments[1:])
            PreferenceCLI(["fit", *rest], fill if rows is None else partial(verify, rows=rows))
        elif arguments[0] == "check":
            check, rest = asked_for(arguments[1:])
            PreferenceCLI(["fit", *rest], check.run, check.loosen, check.refused)
            check.finish()
        elif arguments[0] == "select":
            out, rest = out_of(arguments[1:])
            PreferenceCLI(["fit", *rest], partial(write, out=out, again=_without(rest, *_OF_THE_CHOICE)))
        else:
            PreferenceCLI()
    except MisconfigurationException as error:
        raise UsageError(" ".join(str(error).split())) from error


def _name_of_run(configs: list[Any], going_on: bool) -> str:
    if not configs:
        raise UsageError("give the run a folder: --run_dir runs/NAME (without --config there is no name to take)")
    path = Path(str(configs[-1]))
    if path.stem != "config":
        return f"runs/{path.stem}"
    # The configuration of a run folder goes on in it, or runs again beside it.
    return str(path.parent) if going_on else f"runs/{path.resolve().parent.name}-again"


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _quiet() -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    for message in (
        ".*LeafSpec.*",
        # Every rank logs the same number, of the records of all.
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        ".*predict returned None if it was on purpose.*",
        ".*LightningCLI's args parameter is intended to run.*",  # score: its own arguments start the other ranks
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def _without(arguments: list[str], *prefixes: str) -> list[str]:
    """The arguments less the options that begin so, with their values."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if argument.startswith("--"):
            skip = argument.startswith(prefixes) and "=" not in argument
            if argument.startswith(prefixes):
                continue
        elif skip:
            continue
        kept.append(argument)
    return kept
