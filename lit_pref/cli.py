"""Runs one command of the table: its own options come from the function's signature, the others belong to the run."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from jsonargparse import DefaultHelpFormatter

from lit_pref.commands.run_options import RunOptions
from lit_pref.commands.table import Command, command_named
from lit_pref.option_split import keep_options
from lit_pref.parser import Parser


def main(arguments: Sequence[str], relaunchable: bool = False) -> None:
    """Run a command.

    Args:
        arguments: its name and its options.
        relaunchable: whether they are the options of this process; see `RunOptions`.

    Raises:
        UserError: the command refused its input.
    """
    command = command_named(arguments[0])
    function = command.load()
    parser = command_parser(command, function)
    own, others = keep_options(arguments[1:], parser) if command.needs_run else (arguments[1:], [])
    options = parser.parse_args(own).as_dict()
    if command.needs_run:
        names = [action.option_strings[-1].removeprefix("--") for action in _own_actions(parser)]
        function(RunOptions(command.name, tuple(others), relaunchable, tuple(names)), **options)
    else:
        function(**options)


def command_parser(command: Command, function: Callable[..., None]) -> Parser:
    """The parser of a command's own options: a parameter that takes true or false is a flag."""
    about = inspect.getdoc(function) or ""
    parser = Parser(
        prog=f"python -m lit_pref {command.name}",
        description=about.partition("\nArgs:")[0].partition("\nRaises:")[0].strip(),
        epilog="Every option of a run can follow; `python -m lit_pref fit --help` lists them."
        if command.needs_run
        else None,
        formatter_class=_Help,
        add_help=not command.lists_options_of_run,
    )
    parser.add_function_arguments(function, as_group=False, skip={1} if command.needs_run else set())
    hints = get_type_hints(function)
    for action in _own_actions(parser):
        hint = hints[action.dest]
        if hint is bool or bool in get_args(hint):
            action.nargs, action.const = "?", True
    if command.needs_run:
        parser.usage = " ".join(["%(prog)s --config FILE", *map(_usage, _own_actions(parser)), "[options of a run]"])
    return parser


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with the line breaks of the docstring kept."""


def _own_actions(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


def _usage(action: argparse.Action) -> str:
    name, value = action.option_strings[-1], action.dest.upper()
    if action.nargs == "?":
        hint: Any = getattr(action, "_typehint", bool)
        return f"[{name}]" if hint is bool else f"[{name} [{value}]]"
    return f"{name} {value}" if action.required else f"[{name} {value}]"
