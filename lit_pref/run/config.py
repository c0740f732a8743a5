"""The parser of a run's configuration: Trainer, module, data, and the run folder."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lit_pref.callbacks.checkpointing import Checkpoints  # noqa: F401  short names resolve once they are imported
from lit_pref.callbacks.gold_reward import GoldOfBest, GoldReward  # noqa: F401
from lit_pref.callbacks.sample_texts import SampleTexts  # noqa: F401
from lit_pref.config_files import place_of_message, refuse_mistakes
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.selection import criteria  # noqa: F401
from lit_pref.errors import UsageError, UserError
from lit_pref.modules.base import PairModule
from lit_pref.modules.preference import PreferenceModule
from lit_pref.modules.reward import RewardModule
from lit_pref.option_split import values_of
from lit_pref.parser import Parser
from lit_pref.testbed.make import make
from lit_pref.testbed.settings import Testbed

TRAINER_DEFAULTS = {
    # One pass over all held-out pairs before training gives the baseline of every curve.
    "num_sanity_val_steps": -1,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}


class RunParser(Parser, LightningArgumentParser):
    """Parses the configuration of a run."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        if "data" in (kwargs.get("nested_key"), *args[1:2]):
            # A file given for these arguments contains pairs; jsonargparse would try to read it as a configuration,
            # five times.
            kwargs["sub_configs"] = False
        return super().add_class_arguments(*args, **kwargs)

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        return super().parse_args(None if args is None else fsdp2_as_class(args), *others, **kwargs)


def fsdp2_as_class(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with FSDP2, in either spelling, as a class, which takes settings and keeps those of a file.

    By itself, jsonargparse reads the value of `--trainer.strategy` as Lightning's name of a strategy, which has none.

    >>> fsdp2_as_class(["--trainer.strategy", "fsdp2", "--trainer.strategy.replicas=2"])
    ['--trainer.strategy.class_path=FSDP2', '--trainer.strategy.replicas=2']
    """
    words: list[str] = []
    for word in arguments:
        joined = f"{words[-1]}={word}" if words and words[-1] == "--trainer.strategy" else word
        if joined.lower() == "--trainer.strategy=fsdp2":
            words[len(words) - (joined != word) :] = ["--trainer.strategy.class_path=FSDP2"]
        else:
            words.append(word)
    return words


def run_parser(command: str = "fit", module: type[PairModule] = PreferenceModule) -> RunParser:
    """The parser of a run; the command affects little more than the name in the help."""
    parser = RunParser(
        prog=f"python -m lit_pref {command}",
        description="A run: a policy, pairs, an objective, and Lightning's Trainer.",
        dump_header=[f"lightning.pytorch=={lightning.pytorch.__version__}"],
    )
    parser.add_argument("-c", "--config", action="config", help="A configuration file; later files and options win.")
    parser.add_argument(
        "--seed_everything", type=bool | int, default=0, help="Every seed but that of the split; null ones follow it."
    )
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(module, "model")
    parser.add_lightning_class_args(PreferenceDataModule, "data")
    parser.add_argument("--run_dir", type=str | None, help="Run folder; null: runs/ and the config file's name.")
    parser.add_argument("--testbed", type=Testbed | None, help="Make this testbed first; it fills in policy and data.")
    parser.add_argument("--stop_at_step", type=int | None, help="Stop here, under the full run's schedule.")
    parser.add_argument("--print_summary", type=bool, default=True, help="Print a summary with all paths at the end.")
    parser.add_argument("--ckpt_path", type=str | None, help="A checkpoint to resume or evaluate; `last`: the newest.")
    parser.add_argument("--weights_only", type=bool | None, help="Passed to torch.load; null: true.")
    if command in ("validate", "test"):
        parser.add_argument("--verbose", type=bool, default=True, help="Print Lightning's table of metrics.")
    return parser


def resolve(arguments: Sequence[str], command: str = "fit") -> Namespace:
    """The whole configuration that follows from the options, with every default.

    Raises:
        UsageError: an option or a file cannot be read; the message gives the file and line of a faulty key.
    """
    with with_place(arguments):
        parser = run_parser(command)
        config = parser.parse_args(list(arguments))
        refuse_nulls(parser, config)
        if (module := module_of(config)) is not PreferenceModule:
            refuse_references(config)
            config = run_parser(command, module).parse_args(list(arguments))
    for name in ("run_dir", "ckpt_path"):
        if config[name] is not None:
            config[name] = os.path.expanduser(config[name])
    return config


@contextmanager
def with_place(arguments: Sequence[str]) -> Iterator[None]:
    """Context in which errors about a setting begin with the file and line that set it, unless an option did."""
    try:
        yield
    except UserError as error:
        if type(error) not in (UserError, UsageError):
            raise
        options = [word.partition("=")[0].lstrip("-").rstrip("+") for word in arguments if word.startswith("--")]
        place = place_of_message(str(error), values_of(arguments, "-c", "--config"), options)
        raise type(error)(f"{place}{error}") from error.__cause__


def refuse_nulls(parser: RunParser, config: Namespace) -> None:
    """Refuse null for a setting that needs a value, which jsonargparse lets through.

    Raises:
        UsageError: there is one.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or action.default is None or type(None) in get_args(hint):
            continue
        if action.dest in config and config[action.dest] is None:
            raise UsageError(f"{action.dest}: expected a value, got null; leave it out for {action.default!r}")


def module_of(config: Namespace) -> type[PairModule]:
    """The module of a configuration: `RewardModule` if the trained model has the head of a reward model."""
    return PreferenceModule if config.model.policy.head == "lm" else RewardModule


def refuse_references(config: Namespace) -> None:
    """Refuse references in the configuration of a reward model.

    Raises:
        UsageError: there are some.
    """
    for name in ("references", "reference_store"):
        if config.model[name] is not None:
            raise UsageError(
                f"model.{name} is set, and a reward model (model.policy.head: {config.model.policy.head}) has no "
                "references: leave it out"
            )


def instantiate(parser: RunParser, config: Namespace, arguments: Sequence[str] = ()) -> Namespace:
    """Build the objects of a configuration, except the Trainer.

    Args:
        parser: of the run.
        config: the configuration.
        arguments: the options that it was parsed from, to name the place of a mistake.

    Raises:
        UserError: a class refuses its arguments.
    """
    with with_place(arguments):
        return _instantiate(parser, config)


def _instantiate(parser: RunParser, config: Namespace) -> Namespace:
    try:
        return parser.instantiate(config)
    except ValueError as error:
        # For Optional[Class], jsonargparse repeats the class's error once per union member.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if package := re.search(r"class_path '[\w.]*?(\w+)':\s+Requirement '(\w+)", str(error)):
            raise UsageError(
                f"{package[1]} needs the package {package[2]}, which is not installed: pip install {package[2]}"
            ) from None
        # If one member is not a class, only the text of the error is available.
        texts = re.findall(r"^\s*- (?!Expected|Not a valid|a )(.+)$", str(error), flags=re.MULTILINE)
        if cause is None and not texts:
            raise
        raise cause or UsageError(texts[-1]) from None


def testbed_of(config: Namespace, seed: int) -> Path | None:
    """Make the testbed that a configuration asks for, and fill it in; return its folder, or None without a testbed.

    Its policy and its pairs are used unless the configuration names others, and a reference with the path
    `testbed:NAME` is its policy NAME.

    Args:
        config: the configuration, which is changed.
        seed: the run's seed, for a testbed whose seed is null.

    Raises:
        UsageError: the testbed has no such policy.
    """
    if config.testbed is None:
        return None
    settings = {**vars(config.testbed), "seed": seed if config.testbed.seed is None else config.testbed.seed}
    folder = make(Testbed(**settings))
    policy = config.model.policy
    if policy.path is None and policy.config is None:
        policy.path = str(folder / "policy")
    if config.data.train is None:
        config.data.train = str(folder / "train.jsonl")
        config.data.val = str(folder / "val.jsonl")
    for reference in config.model.get("references") or []:
        arguments = reference.get("init_args") or Namespace()
        mark, _, name = str(arguments.get("path")).partition(":")
        if mark == "testbed":
            if not (folder / name / "config.json").exists():
                raise UsageError(
                    f"model.references: this testbed has no {arguments.path}: set testbed.references to true, which "
                    "makes testbed:stronger and testbed:weaker"
                )
            arguments.path = str(folder / name)
    return folder


def fill_in_seed(config: Any, seed: int) -> None:
    """Take the run's seed for every `seed` in a configuration that is null."""
    if isinstance(config, list):
        for part in config:
            fill_in_seed(part, seed)
    elif isinstance(config, Namespace):
        for name, value in vars(config).items():
            if name == "seed" and value is None:
                setattr(config, name, seed)
            else:
                fill_in_seed(value, seed)


def as_arguments(
    config: str | Path | Mapping[str, Any] | Sequence[str | Path], overrides: Sequence[str] | Mapping[str, Any]
) -> list[str]:
    """Convert files or a plain dictionary, and overrides, to options of the command line.

    >>> as_arguments("configs/dpo.yaml", ["data.seed=1", "--model.objective MMPO"])
    ['--config=configs/dpo.yaml', '--data.seed=1', '--model.objective=MMPO']
    >>> as_arguments({"model": {"layout": "padded"}}, {"trainer.max_steps": 3, "data.val": None})
    ['--config=model:\\n  layout: padded\\n', '--trainer.max_steps=3', '--data.val=null']

    Raises:
        UsageError: an override has no value, or a file has a mistake.
    """
    if isinstance(config, Mapping):
        files = [yaml.safe_dump(dict(config), sort_keys=False)]
    else:
        files = [config] if isinstance(config, str | Path) else list(config)
        files = [os.path.expanduser(file) for file in files]
        refuse_mistakes(files)
    return [*(f"--config={file}" for file in files), *_overrides(overrides)]


def _overrides(overrides: Sequence[str] | Mapping[str, Any]) -> Iterator[str]:
    if isinstance(overrides, Mapping):
        for name, value in overrides.items():
            yield f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        return
    for override in overrides:
        name, given, value = override.strip().removeprefix("--").replace(" ", "=", 1).partition("=")
        if not given:
            raise UsageError(f"the override {override!r} needs a value, such as {name}=1 or {name}=null")
        yield f"--{name}={value.strip()}"
