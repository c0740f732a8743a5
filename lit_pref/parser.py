"""The parser of all commands: another class name drops the old class's arguments, and each error is one sentence.

It imports neither torch nor Lightning, so that a command's own arguments are checked without delay.
"""

import argparse
import inspect
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import jsonargparse._typehints
import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from lit_pref.errors import UsageError
from lit_pref.parse_errors import plain_sentence
from lit_pref.yaml_limits import limited, refuse_alias_bomb


def forget_arguments_of_the_old_class(parser_or_action: Any, old: Any, new: Any) -> None:
    """Drop every argument of the earlier class if a later file or option names another class.

    By itself, jsonargparse keeps the old arguments, including defaults, whose names the new class also accepts: DPO
    would silently run with MMPO's beta, SGD with AdamW's weight decay.
    """
    if old and "init_args" in old and old["class_path"] != new["class_path"]:
        for name in list(vars(old["init_args"])):
            old["init_args"].pop(name)


jsonargparse._typehints.discard_init_args_on_class_path_change = forget_arguments_of_the_old_class
jsonargparse.set_loader("yaml", limited(jsonargparse.get_loader("yaml")), (yaml.YAMLError,))


class Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with the line breaks of docstrings kept and types in words."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        return text.replace("<class 'Path'>", "path").replace("PositiveInt", "whole number above 0")

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return "" if action.metavar == "" else super()._format_args(action, default_metavar)


class Parser(ArgumentParser):
    """A parser that accepts no abbreviations and does not print two hundred lines of usage before an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The parser that prints the help of one class gets no name from jsonargparse.
        own = {"allow_abbrev": False, "formatter_class": Help, "prog": "python -m lit_pref COMMAND"}
        super().__init__(*args, **{**own, **kwargs})

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        added = super().add_class_arguments(theclass, *args, **kwargs)
        if (self.description or "").startswith("Help for --"):
            self.description = f"{theclass.__name__}\n\n{description(theclass)}"
            self._action_groups[-1].title = "arguments"  # in place of the first sentence of the description
        return added

    def _load_config_parser_mode(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Any:
        if path:
            refuse_alias_bomb(content, f"the configuration {path}")
        return super()._load_config_parser_mode(content, path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = list(_option_names(self))
        if self.exit_on_error:
            raise UsageError(plain_sentence(message, options, self.prog.rpartition(" ")[-1])) from ex
        # This is the parser of one class: the outer parser reports the error with the whole key, but only this one
        # knows the class's arguments.
        raise ArgumentError(None, _REFUSED.sub(rf"\g<0> [{', '.join(options)}]", message, count=1)) from ex


def description(documented: Any) -> str:
    """The docstring up to its list of arguments or errors, or to formulas in TeX, as in torch."""
    return re.split(r"\n(?:Args|Raises):\n|\n\.\. math::", inspect.getdoc(documented) or "")[0].strip()


_REFUSED = re.compile(r"Option '([^']+)' is not accepted(?! \[)")


def _option_names(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in (action.choices or {}).values():
                yield from _option_names(subparser)
        for option in action.option_strings:
            if option.startswith("--") and not option.endswith(("help", "+", "print_shtab")):
                yield option[2:]
