"""Runs one command of the table: its own options come from the function's signature, the others belong to the run."""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from lit_pref.commands.run_options import RunOptions
from lit_pref.commands.table import Command, command_of
from lit_pref.option_split import keep_options, with_home
from lit_pref.parser import Parser, description


def main(arguments: Sequence[str], relaunchable: bool = False) -> None:
    """Run a command.

    Args:
        arguments: its name and its options.
        relaunchable: whether they are the options of this process; see `RunOptions`.

    Raises:
        UserError: the command refused its input.
    """
    command, options = command_of(with_home(arguments))
    function = command.load()
    parser = command_parser(command, function)
    if not command.needs_run:
        given = dict(vars(parser.instantiate(parser.parse_args(options))))
        words = [word for name in _positional(function) for word in given.pop(name)]
        function(*words, **given)
        return
    own, others = keep_options(options, parser)
    names = [action.option_strings[-1].removeprefix("--") for action in _own_actions(parser)]
    run = RunOptions(command.name, tuple(others), relaunchable, tuple(names))
    run.refuse_unknown()
    if run.asks_for_help_of_a_class:
        run.resolve()  # prints the help and exits, whatever the command requires
    function(run, **parser.parse_args(own).as_dict())


def command_parser(command: Command, function: Callable[..., None]) -> Parser:
    """The parser of a command's own options: parameters of true or false are flags, and `*words` take words."""
    parser = Parser(
        prog=f"python -m lit_pref {command.name}",
        description=description(function),
        epilog="Every option of a run can follow; `python -m lit_pref fit --help` lists them."
        if command.needs_run
        else None,
        add_help=not command.lists_options_of_run,
    )
    for name in _positional(function):
        about = re.search(rf"^ *{name}: (.+)$", inspect.getdoc(function) or "", flags=re.MULTILINE)
        words = parser.add_argument(name, nargs="*", help=about and about[1], metavar=name.upper().removesuffix("S"))
        words.required = False  # a command says itself how many it needs
    parser.add_function_arguments(function, as_group=False, skip={1} if command.needs_run else set())
    hints = get_type_hints(function)
    for action in _own_actions(parser):
        hint = hints.get(action.dest)  # None for a field of a dataclass, such as slurm.workers
        if hint is bool or bool in get_args(hint):
            action.nargs, action.const = "?", True
            action.metavar = "" if hint is bool else None
    if command.needs_run:
        parser.usage = " ".join(["%(prog)s [--config FILE]", *map(_usage, _own_actions(parser)), "[options of a run]"])
    return parser


def _positional(function: Callable[..., None]) -> list[str]:
    """The parameter that takes all words that are no options, as `*runs`, if a command has one."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.VAR_POSITIONAL]


def _own_actions(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


def _usage(action: argparse.Action) -> str:
    name, value = action.option_strings[-1], action.dest.upper()
    if action.nargs == "?":
        hint: Any = getattr(action, "_typehint", bool)
        return f"[{name}]" if hint is bool else f"[{name} [{value}]]"
    return f"{name} {value}" if action.required else f"[{name} {value}]"
