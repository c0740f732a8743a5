"""`python -m lit_pref score`: computes the missing stored scores of references, verifies, lists and prunes them."""

import time
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from lit_pref.commands.run_options import RunOptions
from lit_pref.errors import UsageError
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule


def score(
    run: RunOptions,
    verify: PositiveInt | None = None,
    list: bool = False,
    prune: bool | str = False,
) -> None:
    """Compute the missing stored scores of a run's references, for all training and validation pairs.

    Scores of references are computed once and kept in $LIT_PREF_CACHE/references; `fit` computes those that it needs
    and that are missing. A killed `score` resumes where it stopped; several started at once share the work. --list and
    --prune are used alone, without the options of a run.

    Args:
        run: the options of the run.
        verify: compute the stored scores of this many randomly drawn pairs again, and print the largest difference;
            exit code 1 if it is more than rounding.
        list: print the content of the store.
        prune: remove the leftovers of killed processes; with a number of days, also the references that were not used
            for that long; with a name, also the reference of that name.

    Raises:
        UsageError: options that exclude each other.
    """
    if list or prune is not False:
        if (list and prune is not False) or verify is not None or run.arguments:
            raise UsageError("score: --list takes no other option, --prune at most DAYS or a NAME; see score --help")
        from lit_pref.commands.score_store import remove, table

        say(table()) if list else remove(None if prune is True else str(prune))
        return
    run.build().before_training(fill if verify is None else lambda module: verify_stored(module, verify))


def fill(module: "PreferenceModule") -> None:
    """Compute the missing scores of a run's data.

    Raises:
        UsageError: the run reads no reference from the store.
    """
    preparations = module.reference_preparations("all")
    _refuse_none(preparations)
    for preparation in preparations:
        needed = preparation.fill()
        module.run_context.say(f"{preparation.label}: {len(needed.keys)} scores in {preparation.store.folder}")


def verify_stored(module: "PreferenceModule", rows: int) -> None:
    """Compute the stored scores of `rows` pairs of a run's data again.

    Raises:
        UserError: they differ by more than rounding.
        UsageError: the run reads no reference from the store.
    """
    import numpy as np

    from lit_pref.references.prepare import tolerance_of

    preparations, run = module.reference_preparations("all"), module.run_context
    _refuse_none(preparations)
    seed = run.broadcast(time.time_ns())
    wrong, compared = [], 0
    for preparation in preparations:
        stored, again = preparation.differences(rows, seed)
        name = f"{preparation.label}, {preparation.store.identity.numerics}"
        if not len(stored):
            run.say(f"{name}: no scores of these pairs are stored yet")
            continue
        compared += len(stored)
        base, share = tolerance_of(preparation.store.identity.numerics)
        differences, allowed = np.abs(stored - again), base + share * np.abs(stored)
        run.say(
            f"{name}: {len(stored)} scores computed again, largest difference {differences.max():.1e} nats (allowed: "
            f"{base:g} and {share:g} of the score)"
        )
        if not (differences <= allowed).all():
            wrong.append(f"{preparation.label} in {preparation.store.folder}")
    if not compared:
        run.refuse(
            "nothing was compared, because no scores of this data are stored: compute them first, without --verify",
        )
    if wrong:
        run.refuse(
            f"stored scores differ from those computed now ({', '.join(wrong)}): remove them with "
            "`python -m lit_pref score --prune NAME`, and say what changed if you know it",
        )


def _refuse_none(preparations: list) -> None:
    if not preparations:
        raise UsageError("score: this configuration reads no reference from the store (see model.reference_store)")
