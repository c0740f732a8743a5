"""`python -m lit_pref score`: fills the store of reference scores, checks it, shows it, frees it."""

import shutil
import time
from datetime import datetime
from io import StringIO
from typing import TYPE_CHECKING

from lit_pref.errors import UsageError, UserError
from lit_pref.references.store_admin import Kept, in_use, kept, tidy

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule

HELP = """usage: python -m lit_pref score --config FILE [--verify N] [options of fit]
       python -m lit_pref score --list
       python -m lit_pref score --prune [DAYS | NAME]

Scores of references are computed once and kept in $LIT_PREF_CACHE/references; `fit` computes what it lacks.

  --config FILE    the configuration of a run, with any option of `fit` after it: computes what the store lacks of all
                   its references, for all pairs of training and validation. Killed, it goes on where it was; started
                   several times at once, the processes share the work
  --verify N       compute the stored scores of N pairs again, drawn by chance, and say how much they differ; exit code
                   1 where that is more than rounding
  --list           what is in the store
  --prune          remove what killed processes left; DAYS: and references not used for so long; NAME: and this one
"""

TOLERANCE = {"fp64": (1e-9, 1e-11), "fp32": (1e-3, 1e-6)}
"""The difference between two computations of a score that is rounding: nats, and nats per nat of the score."""
COARSE = (0.1, 1e-2)
"""The same below fp32, where a score depends on the pairs it is computed with."""


def main(arguments: list[str]) -> None:
    """Show or free what is in the store.

    Raises:
        UsageError: another option.
    """
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
    elif arguments[1:] == ["--list"]:
        print(table(list(kept())))
    elif arguments[1] == "--prune" and len(arguments) <= 3:
        prune(arguments[2] if len(arguments) == 3 else None)
    else:
        raise UsageError("score: --list stands alone, and --prune takes at most DAYS or a NAME; see score --help")


def rows_to_verify(arguments: list[str]) -> tuple[int | None, list[str]]:
    """N of `--verify N`, and the other arguments.

    >>> rows_to_verify(["--config", "a.yaml", "--verify", "8"])
    (8, ['--config', 'a.yaml'])

    Raises:
        UsageError: it is not a number of pairs.
    """
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--verify=") else [a])]
    if "--verify" not in arguments:
        return None, arguments
    at = arguments.index("--verify")
    number = "".join(arguments[at + 1 : at + 2])
    if not number.isdigit() or int(number) == 0:
        raise UsageError(f"--verify takes a number of pairs, as in --verify 32; got {number or 'nothing'!r}")
    return int(number), arguments[:at] + arguments[at + 2 :]


def fill(module: "PreferenceModule") -> None:
    """Compute what the store lacks for the data of a run.

    Raises:
        UsageError: the run reads no reference from the store.
    """
    preparations = module.reference_preparations("all")
    _refuse_none(preparations)
    for preparation in preparations:
        needed = preparation.fill()
        module.run_context.say(f"{preparation.label}: {len(needed.keys)} scores in {preparation.store.folder}")


def verify(module: "PreferenceModule", rows: int) -> None:
    """Compute stored scores of `rows` pairs of a run's data again.

    Raises:
        UserError: they differ by more than rounding.
        UsageError: the run reads no reference from the store.
    """
    import numpy as np

    preparations, run = module.reference_preparations("all"), module.run_context
    _refuse_none(preparations)
    seed = run.broadcast(time.time_ns())
    wrong, compared = [], 0
    for preparation in preparations:
        stored, again = preparation.differences(rows, seed)
        name = f"{preparation.label}, {preparation.store.identity.numerics}"
        if not len(stored):
            run.say(f"{name}: nothing is stored of these pairs yet")
            continue
        compared += len(stored)
        base, share = TOLERANCE.get(preparation.store.identity.numerics.partition("-from-")[0], COARSE)
        differences, allowed = np.abs(stored - again), base + share * np.abs(stored)
        run.say(
            f"{name}: {len(stored)} scores computed again, largest difference {differences.max():.1e} nats (allowed: "
            f"{base:g} and {share:g} of the score)"
        )
        if not (differences <= allowed).all():
            wrong.append(f"{preparation.label} in {preparation.store.folder}")
    if not compared:
        run.refuse("nothing was compared, as nothing is stored of this data: fill it first, without --verify")
    if wrong:
        run.refuse(
            f"stored scores are not what is computed now ({', '.join(wrong)}): remove them with "
            "`python -m lit_pref score --prune NAME`, and say what changed if you know it",
        )


def _refuse_none(preparations: list) -> None:
    if not preparations:
        raise UsageError("score: this configuration reads no reference from the store (see model.reference_store)")


def table(folders: list[Kept]) -> str:
    """What is in the store, as text."""
    from rich.console import Console
    from rich.table import Table

    if not folders:
        return "the reference store is empty"
    rows = Table(title="Stored reference scores", title_justify="left")
    for column in ("name", "reference", "numerics", "of each response"):
        rows.add_column(column)
    for column in ("responses", "MiB", "last used"):
        rows.add_column(column, justify="right")
    for one in folders:
        about = one.about
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        numbers = (str(one.rows), f"{one.size / 2**20:.1f}", used)
        rows.add_row(one.folder.name[:12], about["description"], about["numerics"], about["aggregation"], *numbers)
    out = StringIO()
    Console(file=out, width=140, force_terminal=False).print(rows)
    return out.getvalue().rstrip()


def prune(which: str | None) -> None:
    """Remove what killed processes left, and what was not used for `which` days or bears that name.

    Raises:
        UsageError: nothing bears the name.
    """
    folders = list(kept())
    freed = sum(tidy(one.folder) for one in folders)
    chosen: list[Kept] = []
    if which is not None and which.isdigit() and len(which) < 6:
        chosen = [one for one in folders if time.time() - one.used > 86400 * int(which)]
    elif which is not None:
        chosen = [one for one in folders if one.about["description"] == which or one.folder.name.startswith(which)]
        if not chosen:
            known = ", ".join(one.folder.name[:12] for one in folders) or "nothing"
            raise UsageError(f"--prune {which}: no reference in the store has this name; it holds {known}")
    if busy := [one.folder.name[:12] for one in chosen if in_use(one.folder)]:
        raise UserError(f"{', '.join(busy)} is being filled by a running process: wait for it, or stop it first")
    for one in chosen:
        shutil.rmtree(one.folder)
        freed += one.size
        print(f"removed {one.folder.name[:12]}  {one.about['description']}, {one.about['numerics']}")
    print(f"{freed / 2**20:.1f} MiB freed")
