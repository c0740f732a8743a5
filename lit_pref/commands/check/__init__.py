"""The command `check`: find faults in the data, the objective and the models of a run before training."""

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pref.errors import UsageError

if TYPE_CHECKING:
    from lit_pref.commands.check.check import Check

HELP = """usage: python -m lit_pref check --config FILE [--model] [--html FILE] [--json FILE] [options of fit]

Reads the data of a run as training would and reports, without training, how the sources were read, how many records
were refused or left out, lengths and truncation, bos and eos tokens, margins and the targets made from them, and the
accuracy of rules that ignore quality. All faulty records are counted, even if the run would stop at the first one.
Nothing is written into the run folder. The exit code is 1 if something must be fixed before training.

  --config FILE    the configuration of a run, with any option of `fit` after it
  --model          also build the policy and all references and score up to 64 pairs: compare two passes, both layouts,
                   and the first loss with its expected value; estimate the memory of one optimizer step; run a
                   data.selection that needs a model. Uses one device of the run's accelerator
  --html FILE      write a page with figures, tables and marked tokens, as one self-contained file
  --json FILE      write the report as JSON
"""


def asked_for(arguments: list[str]) -> "tuple[Check, list[str]]":
    """Parse the options of `check`; return the check and the remaining arguments, which are those of `fit`.

    >>> check, rest = asked_for(["--config", "a.yaml", "--model", "--json=out.json"])
    >>> check.title, check.model, check.json, rest
    ('check a.yaml', True, PosixPath('out.json'), ['--config', 'a.yaml'])

    Raises:
        UsageError: an option lacks its file.
    """
    from lit_pref.commands.check.check import Check  # late, because it imports torch

    rest, files, model = [], {}, False
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name == "--model" and not equals:
            model = True
        elif name in ("--html", "--json"):
            value = value if equals else next(waiting, "")
            if not value or value.startswith("--"):
                raise UsageError(f"{name} takes a file to write, as in {name} check.{name[2:]}")
            files[name[2:]] = Path(value)
        else:
            rest.append(argument)
    configs = [value for name, value in itertools.pairwise(rest) if name in ("--config", "-c")]
    configs += [argument.partition("=")[2] for argument in rest if argument.startswith("--config=")]
    return Check(" ".join(["check", *configs]), files.get("html"), files.get("json"), model), rest


def main(arguments: list[str]) -> None:
    """Print the help."""
    sys.stdout.write(HELP)
