"""Splits a command line into some options and the rest, by argparse's own rules."""

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any


class _Keep(argparse.Action):
    """Appends the option as it was written."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        flag = values is None or values == []
        namespace.kept.append(str(option_string) if flag else f"{option_string}={values}")


def with_home(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `~/` as the home folder, which a shell leaves as it is after `=` and in quotes.

    >>> with_home(["judge", "--out=~/x"])[1] == "--out=" + os.path.expanduser("~/x")
    True
    """
    words = (re.fullmatch(r"(--?[\w.+-]+=)?(~/.*)", word, re.DOTALL) or word for word in arguments)
    return [word if isinstance(word, str) else (word[1] or "") + os.path.expanduser(word[2]) for word in words]


def keep_options(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Split arguments into the options that a parser knows, each as one word, and all others, both in their order.

    >>> parser = argparse.ArgumentParser()
    >>> action = parser.add_argument("--out")
    >>> keep_options(["--config", "a.yaml", "--out", "b", "--x=1"], parser)
    (['--out=b'], ['--config', 'a.yaml', '--x=1'])
    """
    return _split(arguments, [(action.option_strings, action.nargs) for action in parser._actions])


def values_of(arguments: Sequence[str], *names: str) -> list[str]:
    """The values of an option, which may be given several times.

    >>> values_of(["--config", "a.yaml", "--x", "1", "--config=b.yaml"], "--config")
    ['a.yaml', 'b.yaml']
    """
    return [word.partition("=")[2] for word in _split(arguments, [(names, "?")])[0]]


def without_options(arguments: Sequence[str], prefixes: Iterable[str]) -> list[str]:
    """The arguments without those options (and their values) whose names begin with one of the prefixes.

    >>> without_options(["fit", "--run_dir", "x", "--model.beta=1", "--data.seed", "1"], ["--run_dir", "--model"])
    ['fit', '--data.seed', '1']
    """
    begin = tuple(prefixes)
    names = sorted({word.partition("=")[0] for word in arguments if word.startswith(begin)})
    return _split(arguments, [([name], "?") for name in names])[1]


def _split(arguments: Sequence[str], options: Iterable[tuple[Sequence[str], Any]]) -> tuple[list[str], list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for number, (names, nargs) in enumerate(options):
        if names:
            # An option without its value is kept: the parser that reads the kept options refuses it.
            parser.add_argument(*names, dest=str(number), action=_Keep, nargs="?" if nargs is None else nargs)
    found, others = parser.parse_known_args(arguments, argparse.Namespace(kept=[]))
    return found.kept, others
