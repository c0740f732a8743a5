"""The table of commands, from which dispatch, help, error messages and documentation are made."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_pref.errors import UsageError
from lit_pref.hints import command_meant


@dataclass(frozen=True)
class Command:
    """A command of `python -m lit_pref`.

    Args:
        name: the word to type, or two.
        help: one line for the list of commands.
        function: its typed function, as `module:name`. The options come from its signature, their help from
            its docstring.
        needs_run: whether the function first takes the `RunOptions` of a run; then every option of `fit` can follow.
        example: a command line, without `python -m lit_pref`.
        lists_options_of_run: whether its `--help` lists every option of a run, for which torch is imported.
    """

    name: str
    help: str
    function: str
    needs_run: bool
    example: str
    lists_options_of_run: bool = False

    def load(self) -> Callable[..., None]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


COMMANDS = (
    Command(
        "fit",
        "train a policy or a reward model",
        "lit_pref.commands.trainer:fit",
        True,
        "fit --config configs/quickstart.yaml",
        lists_options_of_run=True,
    ),
    Command(
        "validate",
        "metrics on held-out pairs",
        "lit_pref.commands.trainer:validate",
        True,
        "validate --config runs/NAME/config.yaml --ckpt_path FILE",
    ),
    Command(
        "test",
        "like validate, logged as test",
        "lit_pref.commands.trainer:test",
        True,
        "test --config runs/NAME/config.yaml --ckpt_path FILE",
    ),
    Command(
        "predict",
        "write one record per held-out pair as Parquet",
        "lit_pref.commands.trainer:predict",
        True,
        "predict --config runs/NAME/config.yaml --ckpt_path FILE",
    ),
    Command(
        "check",
        "find faults in data and models before a run",
        "lit_pref.commands.trainer:check",
        True,
        "check --config FILE --html check.html",
    ),
    Command(
        "score",
        "compute, verify, list or prune stored reference scores",
        "lit_pref.commands.score:score",
        True,
        "score --config FILE",
    ),
    Command(
        "objectives",
        "list the objectives, explain one, translate a TRL one",
        "lit_pref.commands.objectives:objectives",
        False,
        "objectives MMPO",
    ),
    Command(
        "select",
        "write the training pairs that data.selection keeps",
        "lit_pref.commands.select:select",
        True,
        "select --config FILE --out best.jsonl",
    ),
    Command(
        "judge",
        "score responses by a model or a server, and make pairs",
        "lit_pref.commands.judge:judge",
        False,
        "judge --texts responses.jsonl --out FOLDER --model FOLDER",
    ),
    Command(
        "evaluate",
        "accuracy, calibration, benchmarks, win rates, MT-bench",
        "lit_pref.commands.evaluate:evaluate",
        False,
        "evaluate --protocol pairs --data FILE --model FOLDER --out FOLDER",
    ),
    Command(
        "compare",
        "settings, metrics and pairs of finished runs",
        "lit_pref.commands.compare:compare",
        False,
        "compare runs/first runs/second --html compare.html",
    ),
    Command(
        "export",
        "write a checkpoint as a Hugging Face folder",
        "lit_pref.commands.export:write_folder",
        False,
        "export --ckpt_path FILE --out FOLDER",
    ),
    Command(
        "generate",
        "write responses of a model or a server to prompts",
        "lit_pref.commands.generate:generate",
        False,
        "generate --model FOLDER --prompts FILE --out FOLDER",
    ),
    Command(
        "ablate",
        "train the cells of a study on several seeds",
        "lit_pref.commands.ablate:ablate",
        False,
        "ablate --config experiments/NAME/study.yaml",
    ),
    Command(
        "ablate report",
        "write a study's table, page and TensorBoard, also half-way",
        "lit_pref.commands.ablate:report",
        False,
        "ablate report --config experiments/NAME/study.yaml",
    ),
    Command(
        "ablate status",
        "what of a study has ended, runs, waits or failed",
        "lit_pref.commands.ablate:status",
        False,
        "ablate status --config experiments/NAME/study.yaml",
    ),
    Command(
        "ablate retry",
        "let failed trials of a study be trained again",
        "lit_pref.commands.ablate:retry",
        False,
        "ablate retry --config experiments/NAME/study.yaml",
    ),
)


def command_named(name: str) -> Command:
    """The command of that name.

    Raises:
        UsageError: there is no such command.
    """
    names = [command.name for command in COMMANDS]
    if name not in names:
        raise UsageError(f"unknown command {name!r}; known: {', '.join(names)}{command_meant(name, names)}")
    return COMMANDS[names.index(name)]


def command_of(arguments: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that a command line begins with, and its options; a few commands have names of two words.

    Raises:
        UsageError: there is no such command.
    """
    name, *options = arguments
    has_second = any(command.name.startswith(f"{name} ") for command in COMMANDS)
    if has_second and options and not options[0].startswith("-"):
        return command_named(f"{name} {options[0]}"), options[1:]
    return command_named(name), options


def lines(which: tuple[Command, ...] = COMMANDS) -> str:
    """The commands, one line each with an example."""
    return "\n".join(f"  {command.name:<14} {command.help:<58} {command.example}" for command in which)


def program_help() -> str:
    """The text that `python -m lit_pref --help` prints."""
    with_run = lines(tuple(command for command in COMMANDS if command.needs_run))
    without = lines(tuple(command for command in COMMANDS if not command.needs_run))
    return f"""usage: python -m lit_pref COMMAND [options]

Preference optimisation of language models on pairs whose strength is known.

commands that read the configuration of a run (every option can be set in a file and overridden on the command line):
{with_run}

other commands:
{without}

  COMMAND --help                        the options of a command; fit --help lists all options of a run
  fit --model.objective.help MMPO       the formula and arguments of a class
  fit --config FILE --print_config      the configuration with every default, without running it
  fit --config FILE --model.objective DPO --model.objective.beta 0.05    another class, with its own defaults
  fit --config FILE --ckpt_path last    resume a run that was killed
"""
